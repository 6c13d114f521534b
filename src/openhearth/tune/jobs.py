"""A tuning job from settings to receipt.

`prepare` reads headers and data and decides everything; nothing is loaded or written. `run_job` does it.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from openhearth import chat, formats, hardware, hub
from openhearth.config import Config
from openhearth.errors import UsageError
from openhearth.kernels.select import chosen, set_num_threads
from openhearth.models import load_model
from openhearth.runs import RunFolder, hash_files, render_page
from openhearth.spec import ModelSpec, read_spec
from openhearth.spec.to_config import config_of
from openhearth.tune.data.rendering import Renderer
from openhearth.tune.data.samples import SampleSet, load_samples
from openhearth.tune.derive import Plan, derive_data_settings, derive_plan
from openhearth.tune.loops.sft import SftLoop, mean_loss
from openhearth.tune.optimizer import AdamSettings, Optimizer
from openhearth.tune.output import write_output
from openhearth.tune.schedule import Schedule
from openhearth.tune.settings import SftSettings
from openhearth.tune.training import StepMetrics, train
from openhearth.tune.weights import ADAPTER, adapter_parameters, attach_fresh, recompute_layers

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Job:
    """A run that is ready to start. given: the settings as asked for, before anything was derived.

    Example: ``prepare(SftSettings("smollm2", ("a.jsonl",), "polite"), Config.from_env()).plan.num_steps``.
    """

    given: SftSettings
    plan: Plan
    stored: hub.StoredModel
    checkpoint: formats.Checkpoint
    spec: ModelSpec
    tokenizer: chat.Tokenizer
    training: SampleSet
    held_out: SampleSet | None


def prepare(settings: SftSettings, config: Config, *, resumed: Mapping[str, Any] | None = None) -> Job:
    """Read headers and data, and derive what was not said. The model must be on disk.

    resumed: the configuration of the run to go on with; what was derived then is kept. Raises: UsageError
    when settings, data or weights are not those of that run, and as `hub.find` and `load_samples`.
    """
    stored = hub.pull(settings.model, config)
    checkpoint = formats.open_checkpoint(stored.path)
    spec = read_spec(checkpoint)
    tokenizer = chat.load_tokenizer(checkpoint)
    template = chat.load_template(checkpoint, tokenizer)
    if settings.weights == "full" and checkpoint.format == "gguf":
        config_of(spec, dtype="float32")  # refused now, not after the last step
    given = settings
    if resumed is not None:
        settings = _resumed_settings(settings, resumed)
    settings, reasons = derive_data_settings(settings, spec, has_template=template is not None)
    if settings.max_tokens > spec.max_position:
        raise UsageError(f"max_tokens is {settings.max_tokens}",
                         why=f"the model's context is {spec.max_position}",
                         hint=f"--max-tokens {spec.max_position}")
    renderer = Renderer(tokenizer, template, is_chat=settings.chat, max_tokens=settings.max_tokens,
                        vocab_size=spec.vocab_size)
    training = load_samples([Path(path) for path in settings.data], renderer)
    held_out = None
    if settings.eval_data:
        held_out = load_samples([Path(path) for path in settings.eval_data], renderer)
    plan = derive_plan(settings, spec, [len(sample.token_ids) for sample in training.samples],
                       available_bytes=hardware.read_memory().available_bytes)
    plan.reasons.update(reasons)
    job = Job(given, plan, stored, checkpoint, spec, tokenizer, training, held_out)
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
    set_num_threads(settings.threads or hardware.usable_cores())
    if not run.exists:
        run.write_rows("refused.jsonl", [asdict(refusal) for refusal in job.training.refusals])
        run.write_config(_config_record(job))
    model, optimizer, slot = _load(job)
    held_out = {}
    if job.held_out and run.checkpoints.newest() is None:
        run.write("before.json", {"held_out_loss": mean_loss(model, job.held_out.samples,
                                                             settings.pack_tokens, slot)})
    loop = SftLoop(model, optimizer, job.training.samples, seed=settings.seed, batch_size=settings.batch_size,
                   pack_tokens=settings.pack_tokens, adapter_slot=slot)
    schedule = Schedule(settings.schedule, settings.learning_rate, job.plan.num_steps,
                        round(settings.warmup * job.plan.num_steps))
    try:
        train(run, loop, schedule, vocab_size=job.spec.vocab_size, checkpoint_every=settings.checkpoint_every,
              matmul_flops_per_s=matmul_flops_per_s, on_step=on_step)
    finally:
        _write_page(run)
    if job.held_out:
        held_out = {"before": run.read("before.json")["held_out_loss"],
                    "after": mean_loss(model, job.held_out.samples, settings.pack_tokens, slot)}
    with run.writing_output() as folder:
        write_output(folder, job, model, None if slot is None else model.adapters[ADAPTER])
    receipt = _receipt(job, run, versions, held_out)
    run.write_receipt(receipt)
    _write_page(run)
    return receipt


def _load(job: Job) -> tuple[torch.nn.Module, Optimizer, int | None]:
    settings, is_full = job.plan.settings, job.plan.settings.weights == "full"
    model = load_model(job.checkpoint, job.spec, dtype=_DTYPES[settings.dtype], is_trainable=is_full)
    if is_full:
        parameters, slot = dict(model.requires_grad_(True).named_parameters()), None
    else:
        adapter = attach_fresh(model, rank=settings.lora_rank, scale=job.plan.lora_scale,
                               layers=settings.lora_layers, seed=settings.seed)
        parameters, slot = adapter_parameters(adapter), adapter.slot
    if settings.recompute:
        recompute_layers(model)
    adam = AdamSettings(beta2=settings.beta2, weight_decay=settings.weight_decay, clip=settings.clip)
    return model, Optimizer(parameters, adam), slot


def _write_page(run: RunFolder) -> None:
    run.write("index.html", render_page(run.name, run.config(), run.metrics(), run.receipt()))


def _config_record(job: Job) -> dict[str, Any]:
    return {"method": "sft", "given": asdict(job.given), "settings": asdict(job.plan.settings),
            "num_steps": job.plan.num_steps, "reasons": job.plan.reasons,
            "data": job.training.files, "base": {"name": job.stored.name, "source": job.stored.source,
                                                 "weights_sha256": job.stored.weights_sha256},
            "environment": _environment(job)}


def _environment(job: Job) -> dict[str, Any]:
    return {"isa": chosen().isa, "threads": job.plan.settings.threads or hardware.usable_cores(),
            "torch": torch.__version__, "cpu": hardware.read_cpu().model, "system": platform.platform()}


def _receipt(job: Job, run: RunFolder, versions: Mapping[str, str],
             held_out: Mapping[str, float]) -> dict[str, Any]:
    metrics = run.metrics()
    return {
        "receipt": 1, "method": "sft", "settings": asdict(job.plan.settings), "num_steps": job.plan.num_steps,
        "seed": job.plan.settings.seed,
        "data": {"files": job.training.files, "samples": len(job.training.samples),
                 "refused": len(job.training.refusals), "tokens": job.training.num_tokens,
                 "trained_tokens": job.training.num_trained,
                 **({"held_out": job.held_out.files} if job.held_out else {})},
        "base": {"name": job.stored.name, "source": job.stored.source, "files": dict(job.stored.files),
                 "weights_sha256": job.stored.weights_sha256},
        "code": dict(versions), "environment": _environment(job),
        "predicted": {"memory_bytes": job.plan.memory.total_bytes},
        "measured": {"peak_memory_bytes": hardware.peak_memory_bytes(),
                     "seconds": sum(row["seconds"] for row in metrics)},
        "result": {"first_loss": metrics[0]["loss"], "last_loss": metrics[-1]["loss"],
                   **({"held_out_loss": dict(held_out)} if held_out else {})},
        "outputs": hash_files(run.output)}


def _resumed_settings(settings: SftSettings, resumed: Mapping[str, Any]) -> SftSettings:
    """Return the settings a run began with. Raises: UsageError when others are asked for now."""
    then = _revived(resumed["given"])
    different = [name for name, value in asdict(settings).items()
                 if value != asdict(then)[name] and name not in ("threads", "checkpoint_every")]
    if different:
        raise UsageError(f"the run `{settings.out}` began with another {', '.join(different)}",
                         hint="resume it as it began, or choose another --out NAME")
    return _revived(resumed["settings"])


def _revived(record: Mapping[str, Any]) -> SftSettings:
    return SftSettings(**{name: tuple(value) if isinstance(value, list) else value
                          for name, value in record.items()})


def _check_same(resumed: Mapping[str, Any], job: Job) -> None:
    now = _config_record(job)
    for what in ("data", "base"):
        if resumed[what] != now[what]:
            raise UsageError(f"the {what} of the run `{job.given.out}` changed since it began",
                             why=f"then {resumed[what]}\nnow {now[what]}",
                             hint="start again under another name: --out NAME")
    for part in ("isa", "threads", "torch"):
        if resumed["environment"][part] != now["environment"][part]:
            raise UsageError(f"the run `{job.given.out}` began with {part} {resumed['environment'][part]}, "
                             f"now it is {now['environment'][part]}",
                             why="the weights would not be those of a run that was never interrupted",
                             hint="HEARTH_ISA and --threads pin them, or choose another --out NAME")
