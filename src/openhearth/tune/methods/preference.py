"""Learning from preferences as a job: pairs read, reference computed once, held-out pairs judged twice."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from openhearth.kernels.select import chosen
from openhearth.runs import RunFolder
from openhearth.tune.data.preferences import PreferenceRenderer, partners
from openhearth.tune.data.records import Preference
from openhearth.tune.data.samples import SampleSet
from openhearth.tune.data.spool import Spool
from openhearth.tune.derive import Plan
from openhearth.tune.loops.preference import PREFERENCE_LOSSES, PreferenceData, PreferenceLoop
from openhearth.tune.methods.records import Learner, Opened
from openhearth.tune.methods.sft import describe_data, read_data
from openhearth.tune.references import reference_sums
from openhearth.tune.settings import DpoSettings
from openhearth.tune.training import Loop

_RATES = (5e-5, 1e-6)
"""A margin between sums over whole answers moves many times faster than a token's log-probability."""


@dataclass(frozen=True)
class PreferenceWork:
    """The preferences of a run.

    Example: ``prepare_preference(settings, opened, 2**33)[1].training.samples``.
    """

    training: SampleSet
    held_out: SampleSet | None
    name: str = "dpo"

    def data(self) -> dict[str, Any]:
        """Return the hash of every file of rows."""
        return dict(self.training.files)

    def begin(self, run: RunFolder) -> None:
        """Name the rows that are left out."""
        run.write_rows("refused.jsonl", [asdict(refusal) for refusal in self.training.refusals])

    @contextlib.contextmanager
    def looping(self, run: RunFolder, opened: Opened, plan: Plan, learner: Learner) -> Iterator[Loop]:
        """Give the loop, after the reference was computed or found, and the held-out rows were judged."""
        loop = _loop(self._data(self.training, run, opened, plan, learner), plan, learner)
        held_out = self.held_out and self._data(self.held_out, run, opened, plan, learner)
        if held_out and run.checkpoints.newest() is None:
            run.write("before.json", loop.evaluate(held_out))
        yield loop
        if held_out:
            run.write("after.json", loop.evaluate(held_out))

    def result(self, run: RunFolder, plan: Plan, learner: Learner) -> Mapping[str, Any]:
        """Return counts of the data, first and last step, and the held-out measures before and after."""
        metrics, data = run.metrics(), describe_data(self.training)
        result: dict[str, Any] = {"first_loss": metrics[0]["loss"], "last_loss": metrics[-1]["loss"],
                                  "last_accuracy": metrics[-1]["accuracy"],
                                  "last_margin": metrics[-1].get("margin")}
        if self.held_out:
            data["held_out"] = self.held_out.files
            before, after = run.read("before.json"), run.read("after.json")
            result["held_out_loss"] = {"before": before["loss"], "after": after["loss"]}
            result["held_out"] = {"before": before, "after": after}
        return {"data": data, "result": result}

    def _data(self, read: SampleSet, run: RunFolder, opened: Opened, plan: Plan,
              learner: Learner) -> PreferenceData:
        """Return rows with the reference; the model has the weights before tuning, or the run's file them."""
        settings, rows = plan.settings, read.samples
        method = PREFERENCE_LOSSES[settings.loss]
        found = PreferenceData(rows, partners(rows, settings.max_tokens) if method.has_divergence else [], {})
        if not method.has_reference:
            return found
        samples = Spool()
        for place, row in enumerate(rows):
            for sample in (*row.sequences, *found.others([place])):
                samples.add(sample)
        base = {"weights": opened.stored.weights_sha256, "dtype": settings.dtype, "held": settings.base,
                "isa": chosen().isa}
        if opened.start is not None:
            base["adapter"] = opened.start.sha256
        sums = reference_sums(run, learner.model, samples, base=base, pack_tokens=settings.pack_tokens,
                              slot=learner.reference_slot)
        return replace(found, references=sums)


def _loop(data: PreferenceData, plan: Plan, learner: Learner) -> PreferenceLoop:
    settings = plan.settings
    return PreferenceLoop(
        learner.model, learner.optimizer, data, PREFERENCE_LOSSES[settings.loss], beta=settings.beta,
        weights=(settings.chosen_weight or 1.0, settings.rejected_weight or 1.0), seed=settings.seed,
        batch_size=settings.batch_size, pack_tokens=settings.pack_tokens, adapter_slot=learner.slot)


def prepare_preference(settings: DpoSettings, opened: Opened,
                       available_bytes: int) -> tuple[Plan, PreferenceWork]:
    """Read the data and decide what nobody said. Raises: UsageError, and as `load_samples`."""
    is_paired = PREFERENCE_LOSSES[settings.loss].is_paired
    plan, training, held_out = read_data(
        settings, opened, available_bytes, rates=_RATES,
        as_units=lambda renderer: PreferenceRenderer(renderer, is_paired=is_paired))
    if settings.loss == "kto":
        plan = _balance(plan, training.samples)
    return plan, PreferenceWork(training, held_out)


def _balance(plan: Plan, rows: Sequence[Preference]) -> Plan:
    """Weigh the rarer kind of answer so that both kinds matter the same. Source: arXiv 2402.01306, eq. 9."""
    num_chosen = sum(row.chosen is not None for row in rows)
    num_rejected = sum(row.rejected is not None for row in rows)
    share = num_rejected / num_chosen if num_chosen and num_rejected else 1.0
    derived = {"chosen_weight": max(1.0, share), "rejected_weight": max(1.0, 1 / share)}
    fresh = {name: value for name, value in derived.items() if getattr(plan.settings, name) is None}
    reason = f"{num_chosen} chosen and {num_rejected} rejected answers"
    return replace(plan, settings=replace(plan.settings, **fresh),
                   reasons={**plan.reasons, **dict.fromkeys(fresh, reason)})
