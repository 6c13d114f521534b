"""A tuning job from settings to receipt.

`prepare` reads headers and data and decides everything; nothing is loaded or written. `run_job` does it.
"""

from __future__ import annotations

import math
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

import torch

from openhearth import chat, formats, hardware, hub
from openhearth.config import Config
from openhearth.errors import UsageError
from openhearth.kernels.freed import keep_resident_below, limit_kept_products
from openhearth.kernels.select import chosen, set_num_threads
from openhearth.models import load_model
from openhearth.runs import (
    RunFolder,
    hash_files,
    read_rollouts,
    render_page,
    rollout_steps,
    writing_events,
)
from openhearth.spec import read_spec
from openhearth.spec.to_config import config_of
from openhearth.tune.methods.distill import prepare_distill
from openhearth.tune.methods.grpo import prepare_grpo
from openhearth.tune.methods.preference import prepare_preference
from openhearth.tune.methods.records import Job, Learner, Opened
from openhearth.tune.methods.sft import prepare_sft
from openhearth.tune.optimizer import AdamSettings, Optimizer
from openhearth.tune.output import write_output
from openhearth.tune.schedule import Schedule
from openhearth.tune.settings import DistillSettings, DpoSettings, GrpoSettings, SftSettings, TuneSettings
from openhearth.tune.start import find_start, take_over
from openhearth.tune.training import StepMetrics, train
from openhearth.tune.weights import (
    ADAPTER,
    adapter_parameters,
    attach_fresh,
    attach_reference,
    attach_started,
    recompute_layers,
)

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_PAGE_S = 10.0
"""Seconds between two versions of a run's page."""
_PAGE_ROLLOUTS = 24
"""Steps whose rollouts stand on a run's page."""
_PREPARE = {SftSettings: prepare_sft, DpoSettings: prepare_preference, GrpoSettings: prepare_grpo,
            DistillSettings: prepare_distill}


def open_model(ref: str, config: Config) -> Opened:
    """Read the headers of a model on disk. Raises: as `hub.pull` and `formats.open_checkpoint`."""
    stored = hub.pull(ref, config)
    checkpoint = formats.open_checkpoint(stored.path)
    tokenizer = chat.load_tokenizer(checkpoint)
    return Opened(stored, checkpoint, read_spec(checkpoint), tokenizer,
                  chat.load_template(checkpoint, tokenizer), config)


def prepare(settings: TuneSettings, config: Config, *, resumed: Mapping[str, Any] | None = None) -> Job:
    """Read headers and data, and derive what was not said. The model must be on disk.

    resumed: the configuration of the run to go on with; what was derived then is kept. Raises: UsageError
    when settings, data or weights are not those of that run, and as `open_model` and the method's own.
    """
    opened = open_model(settings.model, config)
    if settings.weights == "full" and opened.checkpoint.format == "gguf":
        config_of(opened.spec, dtype="float32")  # refused now, not after the last step
    given, reasons = settings, {}
    if resumed is not None:
        settings = _resumed_settings(settings, resumed)
    if settings.start_adapter is not None:
        opened = replace(opened, start=find_start(settings, opened))
        settings, reasons = take_over(settings, opened.start)
    plan, work = _PREPARE[type(settings)](settings, opened, hardware.read_memory().available_bytes)
    job = Job(given, replace(plan, reasons=reasons | plan.reasons), opened, work)
    if resumed is not None:
        _check_same(resumed, job)
    return job


def run_job(job: Job, run: RunFolder, *, versions: Mapping[str, str], matmul_flops_per_s: float = 0.0,
            on_step: Callable[[StepMetrics], None] = lambda metrics: None) -> dict[str, Any]:
    """Do a job, from its newest checkpoint if it has one, and return its receipt.

    versions: of the code, for the receipt. The caller holds the run (`RunFolder.working`). Raises: as
    `training.train`.
    """
    settings = job.plan.settings
    limit_kept_products()
    keep_resident_below(job.plan.memory.total_bytes)
    set_num_threads(settings.threads or hardware.usable_cores())
    if not run.exists:
        job.work.begin(run)
        run.write_config(_config_record(job))
    learner = load_learner(job)
    schedule = Schedule(settings.schedule, settings.learning_rate, job.plan.num_steps,
                        round(settings.warmup * job.plan.num_steps))
    newest = run.checkpoints.newest()
    with (job.work.looping(run, job.opened, job.plan, learner) as loop,
          writing_events(run, newest.step + 1 if newest else 1) as write_event):
        watching = _Watching(run, write_event, on_step)
        try:
            train(run, loop, schedule, checkpoint_every=settings.checkpoint_every,
                  matmul_flops_per_s=matmul_flops_per_s, on_step=watching.see)
        finally:
            _write_page(run)
    result = job.work.result(run, job.plan, learner)
    with run.writing_output() as folder:
        write_output(folder, job, learner.model,
                     None if learner.slot is None else learner.model.adapters[ADAPTER])
    receipt = _receipt(job, run, versions, result)
    run.write_receipt(receipt)
    _write_page(run)
    return receipt


def load_learner(job: Job) -> Learner:
    """Load a job's model, with what learns of it in the hands of an optimizer."""
    settings, start = job.plan.settings, job.opened.start
    is_full = settings.weights == "full"
    model = load_model(job.opened.checkpoint, job.opened.spec, dtype=_DTYPES[settings.dtype],
                       weights=None if settings.base == "plain" else settings.base, is_trainable=is_full)
    if is_full:
        parameters, slot = dict(model.requires_grad_(True).named_parameters()), None
    else:
        adapter = attach_started(model, start.weights) if start is not None else attach_fresh(
            model, rank=settings.lora_rank, scale=job.plan.lora_scale, layers=settings.lora_layers,
            seed=settings.seed, use_dora=settings.use_dora)
        parameters, slot = adapter_parameters(adapter), adapter.slot
    reference_slot = None
    if start is not None and (isinstance(settings, DpoSettings) or getattr(settings, "kl", 0)):
        reference_slot = attach_reference(model, start.weights)
    if settings.recompute:
        recompute_layers(model)
    adam = AdamSettings(beta2=settings.beta2, weight_decay=settings.weight_decay, clip=settings.clip)
    return Learner(model, Optimizer(parameters, adam, has_muon=settings.optimizer == "muon"), slot,
                   reference_slot)


class _Watching:
    """Those who look on while a run goes: TensorBoard, the run's page, and the caller."""

    def __init__(self, run: RunFolder, write_event: Callable[[Mapping[str, Any]], None],
                 on_step: Callable[[StepMetrics], None]) -> None:
        self._run, self._write_event, self._on_step = run, write_event, on_step
        self._written_s = -math.inf

    def see(self, metrics: StepMetrics) -> None:
        self._write_event(metrics.record())
        if time.monotonic() - self._written_s > _PAGE_S:
            _write_page(self._run)
            self._written_s = time.monotonic()
        self._on_step(metrics)


def _write_page(run: RunFolder) -> None:
    steps = rollout_steps(run)
    stride = -(-len(steps) // _PAGE_ROLLOUTS)
    shown = sorted({*steps[::stride], steps[-1]}) if steps else []
    run.write("index.html", render_page(run.name, run.config(), run.metrics(), run.receipt(),
                                        [one for step in shown for one in read_rollouts(run, step)]))


def _config_record(job: Job) -> dict[str, Any]:
    return {"method": job.work.name, "given": asdict(job.given), "settings": asdict(job.plan.settings),
            "num_steps": job.plan.num_steps, "reasons": job.plan.reasons, "data": job.work.data(),
            "base": describe_base(job.opened), "environment": describe_environment(job.plan.settings)}


def describe_base(opened: Opened) -> dict[str, Any]:
    """Return what names the weights that a run begins with."""
    stored = opened.stored
    named = {"name": stored.name, "source": stored.source, "weights_sha256": stored.weights_sha256}
    return named if opened.start is None else {**named, "adapter_sha256": opened.start.sha256}


def describe_environment(settings: TuneSettings) -> dict[str, Any]:
    """Return what of this machine may decide a run's bits, and what it is."""
    return {"isa": chosen().isa, "threads": settings.threads or hardware.usable_cores(),
            "torch": torch.__version__, "cpu": hardware.read_cpu().model, "system": platform.platform()}


def _receipt(job: Job, run: RunFolder, versions: Mapping[str, str],
             result: Mapping[str, Any]) -> dict[str, Any]:
    metrics = run.metrics()
    return {
        "receipt": 1, "method": job.work.name, "settings": asdict(job.plan.settings),
        "num_steps": job.plan.num_steps, "seed": job.plan.settings.seed,
        "base": {**describe_base(job.opened), "files": dict(job.opened.stored.files)},
        "code": dict(versions), "environment": describe_environment(job.plan.settings),
        "predicted": {"memory_bytes": job.plan.memory.total_bytes},
        "measured": {"peak_memory_bytes": hardware.peak_memory_bytes(),
                     "seconds": sum(row["seconds"] for row in metrics),
                     "mfu": statistics.median(row["mfu"] for row in metrics)},
        **result, "outputs": hash_files(run.output)}


def _resumed_settings(settings: TuneSettings, resumed: Mapping[str, Any]) -> TuneSettings:
    """Return the settings a run began with. Raises: UsageError when others are asked for now."""
    if resumed["given"].keys() != asdict(settings).keys():
        raise UsageError(f"the run `{settings.out}` is one of {resumed['method']}",
                         hint="choose another --out NAME")
    different = changed_settings(settings, revive(type(settings), resumed["given"]))
    if different:
        raise UsageError(f"the run `{settings.out}` began with another {', '.join(different)}",
                         hint="resume it as it began, or choose another --out NAME")
    return revive(type(settings), resumed["settings"])


def changed_settings(now: TuneSettings, then: TuneSettings) -> list[str]:
    """Return the names of settings that decide a run's bits and are not what they were."""
    return [name for name, value in asdict(now).items()
            if value != getattr(then, name) and name not in ("threads", "checkpoint_every")]


def revive(kind: type[TuneSettings], record: Mapping[str, Any]) -> TuneSettings:
    """Return settings from their JSON record."""
    return kind(**{name: tuple(value) if isinstance(value, list) else value
                   for name, value in record.items()})


def _check_same(resumed: Mapping[str, Any], job: Job) -> None:
    now = _config_record(job)
    for what in ("data", "base"):
        if resumed[what] != now[what]:
            raise UsageError(f"the {what} of the run `{job.given.out}` changed since it began",
                             why=f"then {resumed[what]}\nnow {now[what]}",
                             hint="start again under another name: --out NAME")
    check_environment(job.given.out, resumed["environment"], now["environment"])


def check_environment(name: str, then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to go on with a run where its bits would be others. Raises: UsageError."""
    for part in ("isa", "threads", "torch"):
        if then[part] != now[part]:
            raise UsageError(f"the run `{name}` began with {part} {then[part]}, now it is {now[part]}",
                             why="the weights would not be those of a run that was never interrupted",
                             hint="HEARTH_ISA and --threads pin them, or choose another --out NAME")
