"""Teachers: another model, or an adapter over the student's own base.

Does not: learn, or check that a teacher is any good.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from openhearth import chat, formats, hub
from openhearth.errors import UsageError
from openhearth.models import attach, load_model
from openhearth.models.adapter_files import StoredAdapter, read_adapter
from openhearth.runs import find_output
from openhearth.spec import read_spec
from openhearth.tune.methods.records import Learner, Opened
from openhearth.tune.settings import DistillSettings

_ADAPTER = "teacher"


@dataclass(frozen=True)
class TeacherFiles:
    """A teacher on disk. is_base: the student's base with an adapter, which is then held once.

    Example: ``find_teacher(settings, opened).stored.weights_sha256``.
    """

    stored: hub.StoredModel
    checkpoint: formats.Checkpoint
    adapter: StoredAdapter | None
    is_base: bool

    def num_bytes(self, dtype: str) -> int:
        """Return what the teacher's weights take as numbers of a type."""
        return read_spec(self.checkpoint).num_parameters * (2 if dtype == "bfloat16" else 4)

    def describe(self) -> dict[str, str]:
        """Return what names the teacher, for receipts."""
        described = {"name": self.stored.name, "weights_sha256": self.stored.weights_sha256}
        return described | ({"adapter": self.adapter.sha256} if self.adapter else {})


@dataclass(frozen=True)
class Teacher:
    """A loaded teacher. slot: of its adapter, None without one.

    Example: ``load_teacher(files, learner, torch.float32).slot``.
    """

    model: nn.Module
    slot: int | None


def find_teacher(settings: DistillSettings, opened: Opened) -> TeacherFiles:
    """Read a teacher's headers and adapter. opened: the student.

    Raises: UsageError for a teacher that is the student, whose tokens are others, or an adapter of another
    base; and as `hub.pull` and `read_adapter`.
    """
    config = opened.config
    stored = hub.pull(settings.teacher or settings.model, config)
    checkpoint = formats.open_checkpoint(stored.path)
    is_base = stored.weights_sha256 == opened.stored.weights_sha256
    adapter = None
    if settings.teacher_adapter is not None:
        adapter = read_adapter(find_output(config.home, settings.teacher_adapter))
        if adapter.base_weights_sha256 not in ("", stored.weights_sha256):
            raise UsageError(f"the adapter `{settings.teacher_adapter}` is of other weights than "
                             f"`{stored.name}`",
                             why=f"trained on {adapter.base_weights_sha256[:16]} (`{adapter.base_model}`), "
                                 f"these are {stored.weights_sha256[:16]}",
                             hint=f"--teacher {adapter.base_model or 'MODEL'}")
    if is_base and adapter is None and settings.is_on_policy:
        raise UsageError("the teacher is the student: there is nothing to learn",
                         hint="--teacher-adapter RUN, or another --teacher MODEL")
    if settings.is_on_policy and not is_base:
        _check_tokens(opened, checkpoint, stored.name)
    return TeacherFiles(stored, checkpoint, adapter, is_base)


def load_teacher(files: TeacherFiles, learner: Learner, dtype: torch.dtype) -> Teacher:
    """Load a teacher, beside the student's adapter where the base is the same and frozen.

    Raises: UsageError for an adapter that does not fit.
    """
    if files.is_base and learner.slot is not None:
        model = learner.model
    else:
        model = load_model(files.checkpoint, read_spec(files.checkpoint), dtype=dtype).requires_grad_(False)
    if files.adapter is None:
        return Teacher(model, None)
    return Teacher(model, attach(model, _ADAPTER, files.adapter.weights).slot)


def _check_tokens(opened: Opened, checkpoint: formats.Checkpoint, name: str) -> None:
    sizes = (read_spec(checkpoint).vocab_size, opened.spec.vocab_size)
    tokenizer = chat.load_tokenizer(checkpoint)
    if sizes[0] != sizes[1] or not tokenizer.has_same_tokens(opened.tokenizer):
        raise UsageError(f"the teacher `{name}` has other tokens than the student",
                         why=f"vocabularies of {sizes[0]} and {sizes[1]}; what is compared are probabilities",
                         hint="leave out --on-policy: text can be learned from any teacher")
