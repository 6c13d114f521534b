"""`hearth run`: one answer, or a chat on a terminal."""

from __future__ import annotations

import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from openhearth.cli.loading import LoadSettings, import_engine
from openhearth.errors import UsageError

if TYPE_CHECKING:
    from openhearth.cli.memory import MemoryPlan
    from openhearth.hub import StoredModel
    from openhearth.local import LocalModel

_ANSWER_TOKENS = 1024
_CHAT_TOKENS = 4096


def command(
    model: str = typer.Argument(None, metavar="[MODEL]", show_default=False,
                                help="Short name, hub:owner/name, index:dist==version:path, https address or "
                                     "path; the default model when left out."),
    prompt: str = typer.Argument(None, metavar="[PROMPT]", show_default=False,
                                 help="The question; piped input follows it. One argument with spaces is a "
                                      "prompt for the default model. Without one, a terminal opens a chat."),
    system: str = typer.Option(None, "--system", help="System message."),
    temperature: float = typer.Option(None, "--temperature", help="0 is greedy. Default: the model's."),
    top_k: int = typer.Option(None, "--top-k", help="Keep the K likeliest tokens; 0 is off."),
    top_p: float = typer.Option(None, "--top-p", help="Keep the likeliest tokens up to this probability."),
    min_p: float = typer.Option(None, "--min-p", help="Drop tokens below this share of the likeliest."),
    repetition_penalty: float = typer.Option(None, "--repetition-penalty", help="Above 1: repeat less."),
    presence_penalty: float = typer.Option(None, "--presence-penalty", help="Taken from tokens used."),
    frequency_penalty: float = typer.Option(None, "--frequency-penalty", help="Taken once per occurrence."),
    stop: list[str] = typer.Option(None, "--stop", help="Text that ends the answer; may be repeated."),
    schema: Path = typer.Option(None, "--schema", metavar="FILE",
                                help="JSON schema that the answer follows, after a thought."),
    seed: int = typer.Option(None, "--seed", help="Same prompt, settings and seed: same answer."),
    max_tokens: int = typer.Option(None, "--max-tokens", help=f"Longest answer. Default: {_ANSWER_TOKENS}."),
    logprobs: bool = typer.Option(False, "--logprobs", help="Print each token's log-probability."),
    top_logprobs: int = typer.Option(0, "--top-logprobs", metavar="K", help="And those of K alternatives."),
    adapter: str = typer.Option(None, "--adapter", metavar="RUN|PATH",
                                help="Adapter to use: a run of `hearth tune`, or a folder in PEFT's layout."),
    raw: bool = typer.Option(False, "--raw", help="The prompt as it is, without the chat template."),
    suffix: str = typer.Option(None, "--suffix", metavar="TEXT",
                               help="With --raw: fill in what stands between the prompt and this text."),
    dtype: Literal["auto", "float32", "bfloat16"] = typer.Option("auto", "--dtype",
                                                             help="Numbers to compute in; auto goes by the "
                                                                  "weights and the CPU."),
    weights: Literal["auto", "float32", "bfloat16", "int8", "int4"] = typer.Option(
        "auto", "--weights", help="Form of the weights; auto keeps the file's, or what memory holds. "
                                    "Without AMX int8 and int4 are multiplied in 8 bits."),
    cache: Literal["auto", "float32", "bfloat16", "int8"] = typer.Option(
        "auto", "--cache", help="Type of kept keys and values; auto: as computed, int8: half of bfloat16."),
    speculate: int = typer.Option(None, "--speculate", metavar="N", min=0, max=32,
                                  help="Compute up to N tokens ahead where the text repeats itself or a "
                                       "draft model guesses them: the same answer, sooner."),
    draft: str = typer.Option(None, "--draft", metavar="MODEL|mtp",
                              help="A smaller model of the same tokens that guesses what comes next, 4 "
                                   "tokens at a time unless --speculate says how many; `mtp`: the "
                                   "model's own layer for multi-token prediction."),
    context: int = typer.Option(None, "--context", help="Context length in tokens. Default: the model's."),
    threads: int = typer.Option(None, "--threads", min=1, help="CPU threads. Default: every usable core."),
    json: bool = typer.Option(False, "--json", help="One JSON record on stdout."),
    quiet: bool = typer.Option(False, "--quiet", "-q", help="Nothing but the answer."),
    verbose: bool = typer.Option(False, "--verbose", "-v", help="Say what will be needed and what was used."),
) -> None:
    """Ask a model one question, or chat with it on a terminal."""
    from openhearth.cli.prompt import gather_prompt, split_arguments
    from openhearth.cli.sampling import read_schema

    model, prompt = split_arguments(model, prompt)
    if suffix is not None and not raw:
        raise UsageError("--suffix is given without --raw", why="a conversation has no gap to fill",
                         hint='hearth run --raw MODEL "def add(a, b):" --suffix "    return total"')
    prompt = gather_prompt(prompt, is_raw=raw)
    if raw and system is not None:
        raise UsageError("--raw and --system exclude each other", why="a raw prompt has no roles",
                         hint="put the text into the prompt")
    if top_logprobs < 0:
        raise UsageError(f"--top-logprobs is {top_logprobs}", why="expected 0 or more",
                         hint="--top-logprobs 5")
    given = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p,
             "repetition_penalty": repetition_penalty, "presence_penalty": presence_penalty,
             "frequency_penalty": frequency_penalty, "stop": tuple(stop) if stop else None, "seed": seed,
             "max_tokens": max_tokens, "num_logprobs": top_logprobs or None,
             "schema": None if schema is None else read_schema(schema)}
    run = _Run(model, {name: value for name, value in given.items() if value is not None},
               LoadSettings(dtype, weights, context, threads, cache, speculate=speculate), adapter=adapter,
               draft=draft, is_quiet=quiet, is_verbose=verbose or json)
    if prompt is None:
        if raw or json or logprobs or top_logprobs:
            raise UsageError("there is no prompt", why="--raw, --json and --logprobs need one",
                             hint='hearth run --raw smollm2 "Once upon a time"')
        if not sys.stdout.isatty():
            raise UsageError("there is no prompt", why="a chat needs stdout to be a terminal too",
                             hint='hearth run smollm2 "What is the capital of France?" > answer.txt')
    run.find()
    import_engine()
    if prompt is None:
        run.chat(system)
    else:
        run.answer(prompt, system, suffix, is_raw=raw, is_json=json,
                   has_logprobs=logprobs or top_logprobs > 0)


class _Run:
    """One call of the verb: what was asked for, then the model it needs."""

    def __init__(self, ref: str | None, sampling: dict[str, Any], settings: LoadSettings, *,
                 adapter: str | None = None, draft: str | None = None, is_quiet: bool,
                 is_verbose: bool) -> None:
        self.ref = ref
        self.sampling = sampling
        self.settings = settings
        self.adapter = adapter
        self.draft = draft
        self.is_quiet = is_quiet
        self.is_verbose = is_verbose
        self.stored: StoredModel | None = None
        self.plan: MemoryPlan | None = None

    def find(self) -> None:
        """Find or fetch what is asked for; the sampling settings are checked before anything is fetched."""
        from openhearth.cli.loading import fetch_draft, fetch_model
        from openhearth.cli.sampling import check_sampling
        from openhearth.config import Config

        config = Config.from_env()
        if self.adapter is not None:
            from openhearth.runs import find_output

            self.settings = replace(self.settings, adapter=find_output(config.home, self.adapter))
        self.stored = fetch_model(self.ref, config, before_fetch=lambda: check_sampling(self.sampling))
        self.settings = replace(self.settings, draft=fetch_draft(self.draft, config))

    def load(self, num_tokens: int, *, is_printing: bool) -> LocalModel:
        """Load the model that was found."""
        from openhearth.cli.loading import load_stored, note_other_base, predict_memory, print_prediction
        from openhearth.cli.sampling import check_sampling
        from openhearth.config import Config

        check_sampling(self.sampling)
        if self.is_verbose:
            self.plan = predict_memory(self.stored, self.settings, num_tokens)
            if is_printing:
                print_prediction(self.stored, self.plan)
        model = load_stored(self.stored, self.ref, Config.from_env(), self.settings)
        note_other_base(model)
        return model

    def chat(self, system: str | None) -> None:
        """Chat until it is ended."""
        from openhearth.cli.chat_terminal import run_chat
        from openhearth.cli.interrupt import raise_on_interrupt
        from openhearth.config import Config

        model = self.load(_CHAT_TOKENS, is_printing=True)
        with raise_on_interrupt():
            run_chat(model, home=Config.from_env().home, system=system, settings=self.sampling,
                     is_quiet=self.is_quiet)

    def answer(self, prompt: str, system: str | None, suffix: str | None, *, is_raw: bool, is_json: bool,
               has_logprobs: bool) -> None:
        """Answer and leave: 130 after Ctrl-C, with what was generated on stdout."""
        import secrets

        from openhearth.chat import Infill
        from openhearth.cli.answer import answer_record, closing_line, collect, print_logprobs, write_text
        from openhearth.cli.interrupt import catch_interrupt
        from openhearth.cli.output import print_json, print_note
        from openhearth.hardware import peak_memory_bytes

        num_bytes = len((prompt + (suffix or "")).encode("utf-8", "surrogatepass"))
        model = self.load(num_bytes // 3 + self.sampling.get("max_tokens", _ANSWER_TOKENS),
                          is_printing=not is_json)
        if is_raw:
            asked, reading = prompt if suffix is None else Infill(prompt, suffix), None
        else:
            messages = [{"role": "system", "content": system}] if system is not None else []
            rendered = model.render([*messages, {"role": "user", "content": prompt}])
            asked, reading = rendered.token_ids, model.reading(rendered.text)
        sampling = {"seed": secrets.randbits(53), **self.sampling}
        with catch_interrupt() as interrupt:
            answer = collect(model, asked, reading, sampling,
                             (lambda text: None) if is_json else write_text, interrupt)
        measured = {"peak_memory_bytes": peak_memory_bytes()}
        if is_json:
            predicted = {**asdict(self.plan), "peak_memory_bytes": self.plan.total_bytes}
            print_json(answer_record(model, answer, {**model.default_sampling, **sampling},
                                     predicted=predicted, measured=measured))
        else:
            if not answer.text.endswith("\n"):
                write_text("\n")
            if has_logprobs:
                print_logprobs(model, answer)
            if not self.is_quiet:
                print_note(closing_line(answer.timings))
            if self.is_verbose:
                _print_measured(measured["peak_memory_bytes"], self.plan)
        if answer.finish_reason == "cancelled":
            raise typer.Exit(130)


def _print_measured(peak_bytes: int, plan: MemoryPlan) -> None:
    from openhearth.cli.output import print_note
    from openhearth.units import format_bytes

    print_note(f"peak memory {format_bytes(peak_bytes)}, predicted {format_bytes(plan.total_bytes)}")
