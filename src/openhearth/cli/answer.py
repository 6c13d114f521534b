"""One answer: streamed to stdout with a closing line, or as one JSON record.

Does not: parse flags, load models, or hold conversations.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from openhearth.chat.thinking import CLOSE, OPEN
from openhearth.cli.interrupt import Interrupt
from openhearth.cli.output import print_table
from openhearth.cli.terminal_text import for_stream
from openhearth.units import format_seconds

if TYPE_CHECKING:
    from openhearth.chat import Reading
    from openhearth.local import Answer, LocalModel, Piece, Prompt, Timings


@dataclass
class Progress:
    """What has arrived of one answer; `answer` once it is whole, with a cut one made up on Ctrl-C."""

    prompt_token_ids: tuple[int, ...]
    seed: int
    started: float = field(default_factory=time.perf_counter)
    texts: list[str] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    first_token_s: float = 0.0
    answer: Answer | None = None

    def add(self, piece: Piece) -> None:
        """Take one step's piece."""
        self.texts.append(piece.text)
        self.thoughts.append(piece.reasoning)
        self.answer = piece.answer
        if piece.token_id is not None:
            self.first_token_s = self.first_token_s or time.perf_counter() - self.started
            self.token_ids.append(piece.token_id)
            self.logprobs.append(piece.logprob)


def collect(model: LocalModel, prompt: Prompt, reading: Reading | None,
            sampling: Mapping[str, Any], show: Callable[[str], None], interrupt: Interrupt) -> Answer:
    """Stream one answer into `show` and return it, whole or cut by Ctrl-C ("cancelled").

    reading: as `LocalModel.stream`; a thought is shown between `<think>` and `</think>`, whatever the model
    writes around it. sampling: must carry the seed.
    Raises: PromptTooLong, QueueFull, Unsupported, UsageError.
    """
    progress = Progress(model.encode_prompt(prompt), sampling["seed"])
    pieces: Iterator[Piece] = model.stream(prompt, reading=reading, **sampling)
    is_thinking = False
    try:
        for piece in pieces:
            progress.add(piece)
            if piece.reasoning:
                show(piece.reasoning if is_thinking else f"{OPEN}\n{piece.reasoning}")
                is_thinking = True
            if piece.text:
                show(f"\n{CLOSE}\n\n{piece.text}" if is_thinking else piece.text)
                is_thinking = False
            if interrupt.is_set:
                break
    finally:
        pieces.close()
    return progress.answer or _cut_answer(model, progress)


def _cut_answer(model: LocalModel, progress: Progress) -> Answer:
    from openhearth.local import Answer, Timings

    whole_s = time.perf_counter() - progress.started
    first_s = progress.first_token_s or whole_s
    return Answer(
        text="".join(progress.texts), reasoning="".join(progress.thoughts),
        prompt_token_ids=progress.prompt_token_ids, token_ids=tuple(progress.token_ids),
        logprobs=tuple(progress.logprobs), top_logprobs=(), finish_reason="cancelled",
        weights_sha256=model.stored.weights_sha256, seed=progress.seed,
        timings=Timings(load_s=model.load_s, first_token_s=first_s,
                        prefill_tokens=len(progress.prompt_token_ids), prefill_s=first_s,
                        decode_tokens=max(0, len(progress.token_ids) - 1), decode_s=whole_s - first_s))


def write_text(text: str) -> None:
    """Write a piece of an answer to stdout at once."""
    sys.stdout.write(for_stream(text, sys.stdout))
    sys.stdout.flush()


def closing_line(timings: Timings) -> str:
    """Return ``12 prompt tokens in 0.08 s, 24 tokens in 0.60 s: 40.0 tokens/s``.

    Tokens are those drawn after the first one, which ends the prompt's time; their rate is the
    decode rate. With speculation ``(9 of 12 proposed)`` says how many of them were computed beforehand.
    """
    line = f"{timings.prefill_tokens} prompt tokens in {format_seconds(timings.prefill_s)}"
    if timings.decode_tokens == 0:
        return line
    line += f", {timings.decode_tokens} tokens in {format_seconds(timings.decode_s)}"
    if timings.decode_s:
        line += f": {timings.decode_tokens / timings.decode_s:.1f} tokens/s"
    if timings.proposed_tokens:
        line += f" ({timings.accepted_tokens} of {timings.proposed_tokens} proposed)"
    return line


def print_logprobs(model: LocalModel, answer: Answer) -> None:
    """Print one row per token on stdout: text, id, logprob, then the alternatives asked for."""
    width = max((len(row) for row in answer.top_logprobs), default=0)
    rows = []
    tops: Sequence[Any] = answer.top_logprobs or [()] * len(answer.token_ids)
    for token_id, logprob, top in zip(answer.token_ids, answer.logprobs, tops, strict=True):
        others = [f"{_token_text(model, other)} {value:.3f}" for other, value in top]
        rows.append([_token_text(model, token_id), str(token_id), f"{logprob:.4f}",
                     *others, *[""] * (width - len(others))])
    print_table(["token", "id", "logprob", *(f"top {i + 1}" for i in range(width))], rows)


def _token_text(model: LocalModel, token_id: int) -> str:
    return ascii(model.tokenizer.decode([token_id], skip_special=False))


def answer_record(model: LocalModel, answer: Answer, sampling: Mapping[str, Any], *,
                  predicted: Mapping[str, int], measured: Mapping[str, int]) -> dict[str, Any]:
    """Return the `--json` record. Minus infinity is null: JSON has no infinity."""
    record = {
        "text": answer.text, "reasoning": answer.reasoning, "prompt_token_ids": list(answer.prompt_token_ids),
        "token_ids": list(answer.token_ids), "logprobs": [_finite(value) for value in answer.logprobs],
        "finish_reason": answer.finish_reason, "weights": answer.weights_sha256,
        "timings": asdict(answer.timings), "seed": answer.seed,
        "sampling": {key: value for key, value in sampling.items() if key != "seed"},
        "model": model.stored.name, "dtype": model.dtype, "weights_form": model.weights.form,
        "predicted": dict(predicted), "measured": dict(measured),
    }
    if any(answer.top_logprobs):
        record["top_logprobs"] = [[[token_id, _finite(value)] for token_id, value in row]
                                  for row in answer.top_logprobs]
    return record


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
