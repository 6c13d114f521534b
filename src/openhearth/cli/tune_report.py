"""What `hearth tune` shows: the plan with its reasons, samples or prompts, progress."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TextIO

from openhearth.cli.output import print_note
from openhearth.units import format_bytes, format_count, format_seconds

if TYPE_CHECKING:
    from openhearth.tune import Job, Preference, Sample, StepMetrics

_SHOWN_SAMPLES = 2
_TRAINED, _PLAIN = "\033[32m", "\033[0m"
_EVERY = 10
_BYTES_PER_S = 1e10
"""What a core reads of weights while completions are drawn."""


def plan_record(job: Job) -> dict[str, Any]:
    """Return the plan of a job as a JSON record."""
    return {"settings": asdict(job.plan.settings), "reasons": job.plan.reasons,
            "num_steps": job.plan.num_steps, "trainable_parameters": job.plan.num_trainable,
            **(_data_record(job) if _has_rows(job) else _task_record(job)),
            "memory_bytes": {**asdict(job.plan.memory), "total": job.plan.memory.total_bytes},
            "flops": _total_flops(job), "seconds": predicted_seconds(job)}


def _has_rows(job: Job) -> bool:
    """Whether what is trained on is known, and not to be answered first."""
    return hasattr(job.work, "training")


def _data_record(job: Job) -> dict[str, Any]:
    training = job.work.training
    return {"samples": len(training.samples), "tokens": training.num_tokens,
            "trained_tokens": training.num_trained,
            "refused": [asdict(refusal) for refusal in training.refusals]}


def _task_record(job: Job) -> dict[str, Any]:
    prompts = [{"problem": one.problem.id, "prompt_token_ids": one.prompt, "answer": one.problem.answer}
               for one in job.work.shown[:_SHOWN_SAMPLES]]
    return {"tasks": job.work.data(), "longest_prompt": job.work.longest_prompt, "prompts": prompts,
            "cache_bytes": job.plan.memory.cache_bytes}


def print_plan(job: Job, stream: TextIO) -> None:
    """Print what a job will do, what was left out of its data, and why derived settings are as they are."""
    plan = job.plan
    memory = (f"about {format_bytes(plan.memory.total_bytes)}: weights "
              f"{format_bytes(plan.memory.weights_bytes)}, optimizer "
              f"{format_bytes(plan.memory.optimizer_bytes)}, activations "
              f"{format_bytes(plan.memory.activations_bytes)} and gaps of as much"
              + (f", rollouts {format_bytes(plan.memory.cache_bytes)}" if plan.memory.cache_bytes else ""))
    lines = {
        "model": f"{job.opened.stored.name}, {format_count(job.opened.spec.num_parameters)} parameters, "
                 f"{format_count(plan.num_trainable)} learn",
        **(_data_lines(job) if _has_rows(job) else _task_lines(job)), "memory": memory,
        "time": f"about {format_seconds(predicted_seconds(job))} on an idle machine"}
    if not _has_rows(job):
        lines["time"] += ", if every completion is as long as it may be"
    for name, reason in plan.reasons.items():
        value = plan.num_steps if name == "steps" else getattr(plan.settings, name)
        lines[name] = f"{lines[name]}; {reason}" if name in lines else f"{value} ({reason})"
    width = max(map(len, lines))
    for name, text in lines.items():
        print(f"{name.ljust(width)}  {text}", file=stream)


def _data_lines(job: Job) -> dict[str, str]:
    data = job.work.training
    if refused := data.describe_refusals():
        print_note(refused)
    return {"data": f"{len(data.samples)} samples, {format_count(data.num_tokens)} tokens, "
                    f"{format_count(data.num_trained)} trained",
            "steps": f"{job.plan.num_steps} of {job.plan.settings.batch_size} samples"}


def _task_lines(job: Job) -> dict[str, str]:
    settings = job.plan.settings
    if job.work.name == "distill":
        per_step = (f"{settings.prompts} prompts x {settings.group_size} answers" if settings.is_on_policy
                    else f"{settings.batch_size} answers")
        taken = f" with {settings.teacher_adapter}" if settings.teacher_adapter else ""
        return {"task": ", ".join(settings.task), "teacher": f"{job.work.teacher.stored.name}{taken}",
                "steps": f"{job.plan.num_steps} of {per_step}"}
    updates = settings.updates * settings.passes
    return {"task": ", ".join(f"{name} ({source})" for name, source in job.work.data().items()),
            "steps": f"{job.plan.num_steps} of {settings.prompts} prompts x {settings.group_size} completions"
                     + (f", {updates} updates each" if updates > 1 else ""),
            "loss": settings.loss}


def print_samples(job: Job, *, has_colour: bool) -> None:
    """Print the first samples, trained tokens green or between brackets; or the first prompts."""
    if not _has_rows(job):
        for one in job.work.shown[:_SHOWN_SAMPLES]:
            print(f"\n{one.problem.id}: {len(one.prompt)} tokens, answer `{one.problem.answer}`")
            print(job.opened.tokenizer.decode(one.prompt, skip_special=False))
        return
    for unit in job.work.training.samples[:_SHOWN_SAMPLES]:
        print(f"\n{unit.file}:{unit.line}: {len(unit.token_ids)} tokens, {unit.num_trained} trained")
        for title, sample in _titled(unit):
            print(title + _marked(job, sample, *((_TRAINED, _PLAIN) if has_colour else ("[[", "]]"))))


def _titled(unit: Sample | Preference) -> list[tuple[str, Sample]]:
    from openhearth.tune import Preference

    if not isinstance(unit, Preference):
        return [("", unit)]
    return [(f"{title}: ", sample) for title, sample in (("chosen", unit.chosen), ("rejected", unit.rejected))
            if sample is not None]


def _marked(job: Job, sample: Sample, start: str, end: str) -> str:
    parts, first = [], 0
    for place in range(1, len(sample.token_ids) + 1):
        if place == len(sample.token_ids) or sample.is_trained[place] != sample.is_trained[first]:
            text = job.opened.tokenizer.decode(sample.token_ids[first:place], skip_special=False)
            parts.append(f"{start}{text}{end}" if sample.is_trained[first] else text)
            first = place
    return "".join(parts)


def _rolls_out(job: Job) -> bool:
    """Whether every step has completions drawn, and not a teacher once, before."""
    return job.work.name == "grpo" or job.plan.settings.is_on_policy


def _total_flops(job: Job) -> int:
    """Operations of all updates; neither rollouts nor a teacher's are among them."""
    from openhearth.tune.memory import training_flops

    settings = job.plan.settings
    num_adapter = None if settings.weights == "full" else job.plan.num_trainable
    if _has_rows(job):
        lengths = list(job.work.training.samples.lengths)
        num_trained = job.work.training.num_trained
        repeats = job.plan.num_steps * settings.batch_size / len(lengths)
    else:
        num_answers = settings.prompts * settings.group_size if _rolls_out(job) else settings.batch_size
        lengths = [job.work.longest_prompt + settings.max_tokens] * num_answers
        num_trained = settings.max_tokens * num_answers
        repeats = job.plan.num_steps * getattr(settings, "passes", 1)
    num_pairs = sum(length * (length + 1) // 2 for length in lengths)
    return round(repeats * training_flops(job.opened.spec, sum(lengths), num_pairs, num_trained, num_adapter))


def predicted_seconds(job: Job) -> float:
    """Seconds at a tenth of a TFLOP/s per core in float32, three times that where bfloat16 is native.

    A token of a rollout reads all weights once for the whole batch, and costs its operations besides.
    """
    from openhearth import hardware

    settings = job.plan.settings
    cores = settings.threads or hardware.usable_cores()
    is_fast = settings.dtype == "bfloat16" and hardware.has_fast_bfloat16()
    rate = cores * (3e11 if is_fast else 5e10)
    seconds = _total_flops(job) / rate
    if not _has_rows(job):
        spec = job.opened.spec
        num_tokens = settings.max_tokens * (job.plan.num_steps if _rolls_out(job) else 1)
        drawn = settings.prompts * settings.group_size * spec.flops_per_token(job.work.longest_prompt)
        seconds += num_tokens * (job.plan.memory.weights_bytes / (cores * _BYTES_PER_S) + drawn / rate)
    return seconds


def result_lines(result: Mapping[str, Any]) -> dict[str, str]:
    """Return what a receipt's result says of learning, first to last, as people read it."""
    held_out, lines = result.get("held_out_loss"), {}
    for name, text, form in (("loss", "loss", ".4f"), ("reward", "reward", ".3f"),
                             ("pass_rate", "pass rate", ".0%")):
        if f"first_{name}" in result:
            lines[text] = f"{result[f'first_{name}']:{form}} -> {result[f'last_{name}']:{form}}"
    if held_out:
        lines["held out"] = f"{held_out['before']:.4f} -> {held_out['after']:.4f}"
    return lines


class ProgressLine:
    """Steps as they are done: one line that is rewritten on a terminal, every tenth step elsewhere."""

    def __init__(self, num_steps: int, stream: TextIO | None = None) -> None:
        self.num_steps, self.stream = num_steps, stream or sys.stderr
        self.is_terminal = self.stream.isatty()

    def show(self, metrics: StepMetrics) -> None:
        """Take a step's metrics."""
        left_s = (self.num_steps - metrics.step) * metrics.seconds
        said = _grpo_text(metrics.report) if "reward" in metrics.report else _loss_text(metrics)
        mfu = f"  MFU {metrics.mfu:.0%}" if metrics.mfu else ""
        text = (f"step {metrics.step}/{self.num_steps}  {said}{mfu}  lr {metrics.learning_rate:.2e}  "
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


def _loss_text(metrics: StepMetrics) -> str:
    said = "".join(f"  {name} {metrics.report[name]:.3f}" for name in ("margin", "accuracy", "pass_rate")
                   if name in metrics.report)
    return f"loss {metrics.loss:.4f}{said}  {metrics.tokens_per_s:.0f} tokens/s"


def _grpo_text(report: Mapping[str, float]) -> str:
    failed = f"  {report['failed_graders']:.0f} graders failed" if report["failed_graders"] else ""
    return (f"reward {report['reward']:.3f}  pass {report['pass_rate']:.0%}  "
            f"length {report['completion_tokens']:.0f}  entropy {report['entropy']:.2f}  "
            f"skipped {report['skipped_groups']:.0f}{failed}  ratio {report['ratio_max_difference']:.1g}  "
            f"{report['rollout_tokens_per_s']:.0f} + {report['update_tokens_per_s']:.0f} tokens/s  "
            f"{report['rollout_seconds']:.1f} + {report['update_seconds']:.1f} s")
