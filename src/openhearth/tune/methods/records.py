"""What a job knows of its model, and what a method brings to a job."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from torch import nn

from openhearth import chat, formats, hub
from openhearth.config import Config
from openhearth.models.adapter_files import StoredAdapter
from openhearth.runs import RunFolder
from openhearth.spec import ModelSpec
from openhearth.tune.derive import Plan
from openhearth.tune.optimizer import Optimizer
from openhearth.tune.training import Loop

if TYPE_CHECKING:
    from openhearth.tune.settings import TuneSettings


@dataclass(frozen=True)
class Opened:
    """A model on disk whose headers were read. config: where it was looked for. start: what learning goes
    on from, None for a fresh start.

    Example: ``open_model("smollm2", config).spec.vocab_size``.
    """

    stored: hub.StoredModel
    checkpoint: formats.Checkpoint
    spec: ModelSpec
    tokenizer: chat.Tokenizer
    template: chat.ChatTemplate | None
    config: Config
    start: StoredAdapter | None = None


@dataclass(frozen=True)
class Learner:
    """A loaded model, what of it learns, and what moves it. slot: of the adapter, None where all weights do.

    reference_slot: of a frozen copy of the adapter that learning goes on from, where the method compares with
    it; None where it is the model without adapters. Example: ``Learner(model, optimizer, slot=0)``.
    """

    model: nn.Module
    optimizer: Optimizer
    slot: int | None
    reference_slot: int | None = None


class Work(Protocol):
    """A method's own part of a job, read and checked before anything is loaded."""

    name: str

    def data(self) -> dict[str, Any]:
        """Return what identifies the data; a resumed run must find the same."""
        ...

    def begin(self, run: RunFolder) -> None:
        """Write what the run's folder should have from the start."""
        ...

    def looping(self, run: RunFolder, opened: Opened, plan: Plan,
                learner: Learner) -> AbstractContextManager[Loop]:
        """Give the loop; what it holds is let go of at the end."""
        ...

    def result(self, run: RunFolder, plan: Plan, learner: Learner) -> Mapping[str, Any]:
        """Return the receipt's `data` and `result`."""
        ...


@dataclass(frozen=True)
class Job:
    """A run that is ready to start. given: the settings as asked for, before anything was derived.

    Example: ``prepare(SftSettings("smollm2", ("a.jsonl",), "polite"), Config.from_env()).plan.num_steps``.
    """

    given: TuneSettings
    plan: Plan
    opened: Opened
    work: Work
