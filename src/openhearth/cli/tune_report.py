"""What `hearth tune` shows: the plan with its reasons, samples with their trained tokens, progress."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TextIO

from openhearth.cli.output import print_note
from openhearth.units import format_bytes, format_count, format_seconds

if TYPE_CHECKING:
    from openhearth.tune import Job, Sample, StepMetrics

_SHOWN_SAMPLES = 2
_TRAINED, _PLAIN = "\033[32m", "\033[0m"
_EVERY = 10


def plan_record(job: Job) -> dict[str, Any]:
    """Return the plan of a job as a JSON record."""
    return {"settings": asdict(job.plan.settings), "reasons": job.plan.reasons,
            "num_steps": job.plan.num_steps, "trainable_parameters": job.plan.num_trainable,
            "samples": len(job.training.samples), "tokens": job.training.num_tokens,
            "trained_tokens": job.training.num_trained,
            "refused": [asdict(refusal) for refusal in job.training.refusals],
            "memory_bytes": {**asdict(job.plan.memory), "total": job.plan.memory.total_bytes},
            "flops": _total_flops(job), "seconds": _predicted_seconds(job)}


def print_plan(job: Job, stream: TextIO) -> None:
    """Print what a job will do, what was left out of its data, and why derived settings are as they are."""
    plan, data = job.plan, job.training
    if refused := data.describe_refusals():
        print_note(refused)
    lines = {
        "model": f"{job.stored.name}, {format_count(job.spec.num_parameters)} parameters, "
                 f"{format_count(plan.num_trainable)} learn",
        "data": f"{len(data.samples)} samples, {format_count(data.num_tokens)} tokens, "
                f"{format_count(data.num_trained)} trained",
        "steps": f"{plan.num_steps} of {plan.settings.batch_size} samples",
        "memory": f"about {format_bytes(plan.memory.total_bytes)}: weights "
                  f"{format_bytes(plan.memory.weights_bytes)}, optimizer "
                  f"{format_bytes(plan.memory.optimizer_bytes)}, activations "
                  f"{format_bytes(plan.memory.activations_bytes)}",
        "time": f"about {format_seconds(_predicted_seconds(job))} on an idle machine"}
    for name, reason in plan.reasons.items():
        value = plan.num_steps if name == "steps" else getattr(plan.settings, name)
        lines[name] = f"{lines[name]}; {reason}" if name in lines else f"{value} ({reason})"
    width = max(map(len, lines))
    for name, text in lines.items():
        print(f"{name.ljust(width)}  {text}", file=stream)


def print_samples(job: Job, *, has_colour: bool) -> None:
    """Print the first samples of the run's order; trained tokens are green, or between brackets."""
    for sample in job.training.samples[:_SHOWN_SAMPLES]:
        print(f"\n{sample.file}:{sample.line}: {len(sample.token_ids)} tokens, {sample.num_trained} trained")
        print(_marked(job, sample, *((_TRAINED, _PLAIN) if has_colour else ("[[", "]]"))))


def _marked(job: Job, sample: Sample, start: str, end: str) -> str:
    parts, first = [], 0
    for place in range(1, len(sample.token_ids) + 1):
        if place == len(sample.token_ids) or sample.is_trained[place] != sample.is_trained[first]:
            text = job.tokenizer.decode(sample.token_ids[first:place], skip_special=False)
            parts.append(f"{start}{text}{end}" if sample.is_trained[first] else text)
            first = place
    return "".join(parts)


def _total_flops(job: Job) -> int:
    from openhearth.tune.memory import step_flops

    lengths = [len(sample.token_ids) for sample in job.training.samples]
    epochs = job.plan.num_steps * job.plan.settings.batch_size / len(lengths)
    return round(epochs * step_flops(job.spec, lengths, is_full=job.plan.settings.weights == "full"))


def _predicted_seconds(job: Job) -> float:
    """Seconds at a tenth of a TFLOP/s per core in float32, three times that where bfloat16 is native."""
    from openhearth import hardware

    cores = job.plan.settings.threads or hardware.usable_cores()
    rate = cores * (3e11 if job.plan.settings.dtype == "bfloat16" and hardware.has_fast_bfloat16() else 5e10)
    return _total_flops(job) / rate


class ProgressLine:
    """Steps as they are done: one line that is rewritten on a terminal, every tenth step elsewhere."""

    def __init__(self, num_steps: int, stream: TextIO | None = None) -> None:
        self.num_steps, self.stream = num_steps, stream or sys.stderr
        self.is_terminal = self.stream.isatty()

    def show(self, metrics: StepMetrics) -> None:
        """Take a step's metrics."""
        left_s = (self.num_steps - metrics.step) * metrics.seconds
        mfu = f", MFU {metrics.mfu:.0%}" if metrics.mfu else ""
        text = (f"step {metrics.step}/{self.num_steps}  loss {metrics.loss:.4f}  "
                f"lr {metrics.learning_rate:.2e}  {metrics.tokens_per_s:.0f} tokens/s{mfu}  "
                f"{format_seconds(left_s)} left")
        if self.is_terminal:
            print(f"\r\033[K{text}", end="", file=self.stream, flush=True)
        elif metrics.step % _EVERY == 0 or metrics.step in (1, self.num_steps):
            print(text, file=self.stream, flush=True)

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(self, *_: object) -> None:
        if self.is_terminal:
            print(file=self.stream)
