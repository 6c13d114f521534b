"""What a single run of `hearth tune` and a stage of a chain have in common."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from openhearth.errors import UsageError

if TYPE_CHECKING:
    from openhearth.config import Config
    from openhearth.runs import RunFolder
    from openhearth.tune import Job, TuneSettings


def refuse_existing(run: RunFolder, *, is_resumed: bool) -> None:
    """Refuse to begin a run that is there. Raises: UsageError."""
    if run.exists and not is_resumed:
        raise UsageError(f"there is a run `{run.name}` already",
                         hint="--resume goes on with it; another --out NAME starts anew")


def ask_teacher(settings: TuneSettings, config: Config, run: RunFolder) -> None:
    """Have the teacher answer where a run learns from its answers; nothing for other runs."""
    from openhearth import tune
    from openhearth.cli.interrupt import raise_on_interrupt
    from openhearth.cli.loading import fetch_model
    from openhearth.cli.output import print_note

    if not isinstance(settings, tune.DistillSettings) or settings.is_on_policy:
        return
    fetch_model(settings.teacher or settings.model, config, before_fetch=lambda: None)
    with raise_on_interrupt():
        tune.sample_teacher(settings, config, run, on_block=lambda done, right, total: print_note(
            f"teacher: {done} of {total} problems, {right} right answers"))


def train(job: Job, run: RunFolder) -> dict[str, Any]:
    """Do a job with its plan and progress on stderr, and return its receipt."""
    from openhearth import hardware, tune
    from openhearth.cli.interrupt import raise_on_interrupt
    from openhearth.cli.tune_report import ProgressLine, print_plan
    from openhearth.cli.versions import read_versions
    from openhearth.kernels.freed import limit_kept_products
    from openhearth.kernels.select import set_num_threads

    limit_kept_products()
    print_plan(job, sys.stderr)
    set_num_threads(job.plan.settings.threads or hardware.usable_cores())
    progress = ProgressLine(job.plan.num_steps)
    with raise_on_interrupt(), progress:
        return tune.run_job(job, run, versions=read_versions(), matmul_flops_per_s=_matmul_rate(job),
                            on_step=progress.show)


def _matmul_rate(job: Job) -> float:
    import torch

    from openhearth import bench

    return bench.measure_matmul(getattr(torch, job.plan.settings.dtype)).median


def print_end(run: RunFolder, receipt: dict[str, Any], *, is_json: bool) -> None:
    """Print how a run ended."""
    from openhearth.cli.output import print_fields, print_json
    from openhearth.cli.tune_report import result_lines
    from openhearth.units import format_bytes, format_seconds

    if is_json:
        print_json({"run": run.name, "path": str(run.path), "output": str(run.output), "receipt": receipt})
        return
    measured = receipt["measured"]
    is_adapter = "adapter_model.safetensors" in receipt["outputs"]
    model = receipt["settings"]["model"]
    print_fields({
        "run": run.name, **result_lines(receipt["result"]),
        **{stage["name"]: "; ".join(f"{name} {text}" for name, text in result_lines(stage["result"]).items())
           for stage in receipt.get("stages", ())},
        "time": format_seconds(measured["seconds"]),
        "MFU": (f"{measured['mfu']:.0%} of the measured matrix rate while updating" if measured.get("mfu")
                else ""),
        "peak memory": f"{format_bytes(measured['peak_memory_bytes'])}, predicted "
                       f"{format_bytes(receipt['predicted']['memory_bytes'])}",
        "output": str(run.output),
        "page": str(run.path / "index.html"),
        "try it": f"hearth run {model} --adapter {run.name} \"...\"" if is_adapter
                  else f"hearth run {run.output} \"...\"",
    })
