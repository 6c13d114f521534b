"""`hearth eval`: what a model can do, by tasks with verifiable answers."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from openhearth.cli.loading import LoadSettings
from openhearth.cli.output import print_json, print_note
from openhearth.errors import UsageError
from openhearth.units import format_seconds

if TYPE_CHECKING:
    from openhearth.config import Config
    from openhearth.evals import EvalFolder, EvalSettings, Sample
    from openhearth.local import LocalModel
    from openhearth.tasks import Task

_SHOWN = 64
"""Problems that --dry-run renders of each task."""
_IN_FLIGHT = 256
"""Completions that an engine advances together, see `engine/settings.py`."""


def command(
    model: str = typer.Argument(None, metavar="[MODEL]", show_default=False,
                                help="As for `hearth run`; the default model when left out."),
    task: list[str] = typer.Option(None, "--task", metavar="NAME[,NAME]",
                                   help="chain_sum, gsm8k:path=FOLDER, reasoning-gym:NAME, file.py:NAME; "
                                        "options follow as :key=value. May be repeated."),
    num: int = typer.Option(None, "--num", metavar="N",
                            help="Problems per task. Default: all, or 200 where a task has no end."),
    samples: int = typer.Option(1, "--samples", metavar="K", help="Answers per problem, for pass@k."),
    split: Literal["train", "test"] = typer.Option("test", "--split", help="Which problems."),
    temperature: float = typer.Option(None, "--temperature",
                                      help="Default: 0 (greedy) for one answer, the model's for several."),
    top_p: float = typer.Option(None, "--top-p", help="As for `hearth run`."),
    max_tokens: int = typer.Option(None, "--max-tokens", help="Longest answer. Default: the task's."),
    seed: int = typer.Option(0, "--seed", help="Same model, settings and seed: same answers, bit for bit."),
    adapter: str = typer.Option(None, "--adapter", metavar="RUN|PATH",
                                help="An adapter that the model takes; a model of --against does not."),
    against: str = typer.Option(None, "--against", metavar="MODEL",
                                help="A second model on the same problems, with a paired test."),
    out: Path = typer.Option(None, "--out", metavar="DIR",
                             help="Folder of samples and receipt. Default: one in the store, per settings."),
    resume: bool = typer.Option(False, "--resume", help="Go on with what a cut run left there."),
    dry_run: bool = typer.Option(False, "--dry-run", help="Say what would be asked, and ask nothing."),
    dtype: Literal["auto", "float32", "bfloat16"] = typer.Option("auto", "--dtype",
                                                             help="As for `hearth run`."),
    context: int = typer.Option(None, "--context", help="Context length in tokens. Default: the model's."),
    threads: int = typer.Option(None, "--threads", min=1, help="CPU threads. Default: every usable core."),
    json: bool = typer.Option(False, "--json", help="One JSON record on stdout."),
) -> None:
    """Measure a model on tasks with verifiable answers: accuracy, its interval, and every sample."""
    from openhearth.cli.eval_table import print_plan, print_report
    from openhearth.config import Config

    sampling = {name: value for name, value in (("temperature", temperature), ("top_p", top_p))
                if value is not None}
    tasks = _find_tasks(task or [])
    run = _Run(tasks, _settings(num, samples, split, seed, max_tokens, sampling), Config.from_env(),
               LoadSettings(dtype=dtype, context_length=context, num_threads=threads), adapter, out,
               is_resumed=resume)
    if dry_run:
        record = run.plan(model)
        print_json(record) if json else print_plan(record)
        return
    try:
        record = run.measure(model, against)
    except _Cut as cut:
        print_note(f"interrupted: {cut.num_samples} samples are in {cut.path}; --resume goes on")
        raise typer.Exit(130) from None
    print_json(record) if json else print_report(record)


def _settings(num: int | None, samples: int, split: str, seed: int, max_tokens: int | None,
              sampling: dict[str, float]) -> EvalSettings:
    """Return the settings, checked before anything is fetched."""
    from openhearth.cli.sampling import check_sampling
    from openhearth.evals import EvalSettings

    check_sampling(sampling)
    return EvalSettings(num_problems=num, num_samples=samples, split=split, seed=seed, max_tokens=max_tokens,
                        sampling=sampling)


def _find_tasks(given: list[str]) -> list[Task]:
    """Return the tasks of all --task flags. Raises: UsageError without any, or for one named twice."""
    from openhearth.tasks import find, list_names

    names = [name for text in given for name in text.split(",") if name.strip()]
    if not names:
        raise UsageError("there is no task to ask", hint="hearth eval smollm2 --task chain_sum --num 50",
                         why=f"tasks: {', '.join(list_names())}; reasoning-gym:NAME; file.py:NAME")
    tasks = [find(name) for name in names]
    for task in tasks:
        if sum(other.name == task.name for other in tasks) > 1:
            raise UsageError(f"task `{task.name}` is named twice", hint="name it once")
    return tasks


class _Cut(Exception):
    """Ctrl-C: what is done is kept."""

    def __init__(self, path: Path, num_samples: int) -> None:
        super().__init__()
        self.path, self.num_samples = path, num_samples


@dataclass(frozen=True)
class _Run:
    """One call of the verb: what was asked for, apart from the models."""

    tasks: list[Task]
    settings: EvalSettings
    config: Config
    load: LoadSettings
    adapter: str | None
    out: Path | None
    is_resumed: bool

    def plan(self, ref: str | None) -> dict[str, Any]:
        """Return what would be asked, and the memory it needs at most; no weight is read."""
        from openhearth import chat, evals, formats
        from openhearth.cli.loading import fetch_model, predict_memory
        from openhearth.errors import TemplateError
        from openhearth.tasks import NOW

        stored = fetch_model(ref, self.config, before_fetch=lambda: None)
        checkpoint = formats.open_checkpoint(stored.path)
        tokenizer = chat.load_tokenizer(checkpoint)
        template = chat.load_template(checkpoint, tokenizer)
        if template is None:
            raise TemplateError(f"`{stored.name}` has no chat template", why="tasks are conversations",
                                hint="evaluate the instruct version of this model")
        rows, num_tokens = [], 0
        for task in self.tasks:
            count = evals.num_problems(task, self.settings)
            prompts = [chat.render(template, tokenizer, task.problem(self.settings.split, index).messages,
                                   now=NOW) for index in range(min(count, _SHOWN))]
            longest = max(len(prompt.token_ids) for prompt in prompts)
            max_tokens = self.settings.max_tokens or task.max_tokens
            num_tokens = max(num_tokens, longest + max_tokens)
            rows.append({"task": task.name, "source": task.source, "problems": count,
                         "samples": count * self.settings.num_samples, "longest_prompt_tokens": longest,
                         "max_tokens": max_tokens, "prompt": prompts[0].text})
        in_flight = min(_IN_FLIGHT, sum(row["samples"] for row in rows))
        memory = predict_memory(stored, self.load, num_tokens)
        cache_bytes = memory.cache_bytes * in_flight
        return {"model": stored.name, "weights": stored.weights_sha256, "tasks": rows,
                "predicted": {"weights_bytes": memory.weights_bytes, "cache_bytes": cache_bytes,
                              "workspace_bytes": memory.workspace_bytes}}

    def measure(self, ref: str | None, against: str | None) -> dict[str, Any]:
        """Evaluate one model, or two on the same problems. Raises: _Cut on Ctrl-C."""
        from openhearth.evals import compare_samples

        record, samples = self._evaluate(ref, self.out)
        if against is None:
            return record
        second, others = self._evaluate(against, None if self.out is None else self.out / "against",
                                        is_second=True)
        paired = compare_samples(samples, others)
        record["against"] = second
        record["paired"] = {task: asdict(found) for task, found in paired.items()}
        return record

    def _evaluate(self, ref: str | None, out: Path | None, *,
                  is_second: bool = False) -> tuple[dict[str, Any], list[Sample]]:
        from openhearth import evals
        from openhearth.cli.loading import fetch_model, load_stored, note_other_base
        from openhearth.cli.versions import read_versions
        from openhearth.kernels.select import chosen
        from openhearth.runs import find_output

        load, adapter = self.load, None if is_second else self.adapter
        if adapter is not None:
            load = replace(load, adapter=find_output(self.config.home, adapter))
        stored = fetch_model(ref, self.config, before_fetch=lambda: None)
        model = load_stored(stored, ref, self.config, load)
        note_other_base(model)
        asked = evals.describe(model, self.tasks, self.settings, isa=chosen().isa, versions=read_versions())
        path = out or self.config.home / "evals" / evals.hash_settings(asked)[:16]
        # A run that was cut at its first model left nothing of the second to resume.
        is_resumed = self.is_resumed and (path.exists() or not is_second)
        folder = evals.EvalFolder.begin(path, asked, is_resumed=is_resumed)
        try:
            seconds = self._ask(model, folder)
        finally:
            folder.close()
        results = {task: asdict(result) for task, result in evals.summarise(folder.samples).items()}
        name = model.stored.name if adapter is None else f"{model.stored.name} + {adapter}"
        receipt = folder.finish({"model": name, "settings": asked, "results": results},
                                [str(task.name) for task in self.tasks])
        return {**receipt, "seconds": round(seconds, 3), "path": str(path),
                "earlier_samples_sha256": (folder.earlier or {}).get("samples_sha256")}, folder.samples

    def _ask(self, model: LocalModel, folder: EvalFolder) -> float:
        """Ask what the folder does not hold yet; returns the seconds. Raises: _Cut on Ctrl-C."""
        from openhearth import evals
        from openhearth.cli.interrupt import catch_interrupt
        from openhearth.tasks import Grading

        started = time.perf_counter()
        done = {(sample.task, sample.problem) for sample in folder.samples}
        total = sum(evals.num_problems(task, self.settings) for task in self.tasks)
        line = _Line(model.stored.name, len(done), total)
        with catch_interrupt() as interrupt, Grading(self.tasks) as grading:
            for samples in evals.evaluate(model, self.tasks, self.settings, grading=grading, done=done):
                if samples:
                    folder.add(samples)
                    line.add(samples)
                if interrupt.is_set:
                    line.close()
                    raise _Cut(folder.path, len(folder.samples))
        line.close()
        return time.perf_counter() - started


class _Line:
    """How far an evaluation is, on stderr: a moving line on a terminal, a line per tenth elsewhere."""

    def __init__(self, name: str, num_done: int, total: int) -> None:
        self._name, self._num_done, self._total = name, num_done, total
        self._num_right = self._num_asked = 0
        self._started = time.perf_counter()
        self._is_live = sys.stderr.isatty()

    def add(self, samples: list[Sample]) -> None:
        """Count the samples of one problem."""
        self._num_done += 1
        self._num_asked += len(samples)
        self._num_right += sum(sample.verdict == "correct" for sample in samples)
        text = (f"{self._name}: {self._num_done} of {self._total} problems, "
                f"{100 * self._num_right / self._num_asked:.0f}% right, "
                f"{format_seconds(time.perf_counter() - self._started)}")
        if self._is_live:
            print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
        elif self._num_done * 10 // self._total > (self._num_done - 1) * 10 // self._total:
            print_note(text)

    def close(self) -> None:
        """End the moving line."""
        if self._is_live:
            print(file=sys.stderr)
