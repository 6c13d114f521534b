"""Supervised fine-tuning as a job: rows read, held-out loss before and after."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from openhearth.errors import UsageError
from openhearth.runs import RunFolder
from openhearth.tune.data.rendering import Renderer
from openhearth.tune.data.samples import RowRenderer, SampleSet, load_samples
from openhearth.tune.data.sources import find_files
from openhearth.tune.derive import Plan, base_bytes, derive_data_settings, derive_plan
from openhearth.tune.loops.sft import SftLoop, mean_loss
from openhearth.tune.methods.records import Learner, Opened
from openhearth.tune.settings import SftSettings
from openhearth.tune.training import Loop


@dataclass(frozen=True)
class SftWork:
    """The samples of a run. Example: ``prepare_sft(settings, opened, 2**33)[1].training.num_tokens``."""

    training: SampleSet
    held_out: SampleSet | None
    name: str = "sft"

    def data(self) -> dict[str, Any]:
        """Return the hash of every file of rows."""
        return dict(self.training.files)

    def begin(self, run: RunFolder) -> None:
        """Name the rows that are left out."""
        run.write_rows("refused.jsonl", [asdict(refusal) for refusal in self.training.refusals])

    @contextlib.contextmanager
    def looping(self, run: RunFolder, opened: Opened, plan: Plan, learner: Learner) -> Iterator[Loop]:
        """Give the loop, after the held-out loss was measured once."""
        settings = plan.settings
        if self.held_out and run.checkpoints.newest() is None:
            run.write("before.json", {"held_out_loss": self._held_out_loss(plan, learner)})
        yield SftLoop(learner.model, learner.optimizer, self.training.samples, seed=settings.seed,
                      batch_size=settings.batch_size, pack_tokens=settings.pack_tokens,
                      adapter_slot=learner.slot)

    def result(self, run: RunFolder, plan: Plan, learner: Learner) -> Mapping[str, Any]:
        """Return counts of the data, losses of the first and last step, and the held-out losses."""
        metrics = run.metrics()
        result: dict[str, Any] = {"first_loss": metrics[0]["loss"], "last_loss": metrics[-1]["loss"]}
        data = describe_data(self.training)
        if self.held_out:
            data["held_out"] = self.held_out.files
            result["held_out_loss"] = {"before": run.read("before.json")["held_out_loss"],
                                       "after": self._held_out_loss(plan, learner)}
        return {"data": data, "result": result}

    def _held_out_loss(self, plan: Plan, learner: Learner) -> float:
        return mean_loss(learner.model, self.held_out.samples, plan.settings.pack_tokens, learner.slot)


def prepare_sft(settings: SftSettings, opened: Opened, available_bytes: int) -> tuple[Plan, SftWork]:
    """Read the data and decide what nobody said. Raises: UsageError, and as `load_samples`."""
    plan, training, held_out = read_data(settings, opened, available_bytes)
    return plan, SftWork(training, held_out)


def read_data(settings: SftSettings, opened: Opened, available_bytes: int, *,
              as_units: Callable[[Renderer], RowRenderer] = lambda renderer: renderer,
              **usual: Any) -> tuple[Plan, SampleSet, SampleSet | None]:
    """Return the plan, the data and the held-out data of a method that learns from rows.

    as_units: turns the renderer of samples into that of what the method is trained on. usual: what
    `derive_plan` takes. Raises: as `prepare_sft`.
    """
    spec = opened.spec
    settings, reasons = derive_data_settings(settings, spec, has_template=opened.template is not None)
    if settings.max_tokens > spec.max_position:
        raise UsageError(f"max_tokens is {settings.max_tokens}",
                         why=f"the model's context is {spec.max_position}",
                         hint=f"--max-tokens {spec.max_position}")
    renderer = as_units(Renderer(opened.tokenizer, opened.template, is_chat=settings.chat,
                                 max_tokens=settings.max_tokens, vocab_size=spec.vocab_size))
    training = load_samples(find_files(settings.data, opened.config), renderer)
    held_out = None
    if settings.eval_data:
        held_out = load_samples(find_files(settings.eval_data, opened.config), renderer)
    plan = derive_plan(settings, spec, training.samples.lengths,
                       available_bytes=available_bytes,
                       base_bytes=base_bytes(settings, opened.checkpoint, spec), **usual)
    plan.reasons.update(reasons)
    return plan, training, held_out


def describe_data(training: SampleSet) -> dict[str, Any]:
    """Return what a receipt says of the rows that were trained on."""
    return {"files": training.files, "samples": len(training.samples), "refused": len(training.refusals),
            "tokens": training.num_tokens, "trained_tokens": training.num_trained}
