"""Stand-ins for tensors while a forward is recorded: what passes through the operations' entry points.

A model's forward is called once with these instead of tensors; every operation that meets one appends a
step to the program behind it (`kernels/program.py`) instead of computing.

Does not: hold numbers. Code that asks a stand-in for anything else fails, and the recording with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from openhearth.kernels.program import Recorder


@dataclass(frozen=True)
class Traced:
    """One row per token of a pack: a buffer of the program.

    Example: ``Traced(recorder, buffer=3, width=576, dtype=torch.float32)``.
    """

    recorder: Recorder
    buffer: int
    width: int
    dtype: torch.dtype


@dataclass(frozen=True)
class TracedPack:
    """The token ids, positions or layout of whatever pack a run is given.

    Example: ``model.forward(pack, pack, pack)`` records a forward.
    """

    recorder: Recorder


@dataclass(frozen=True)
class TracedRotation:
    """Angles that a run computes from its positions. Example: ``TracedRotation(index=0, head_dim=64)``."""

    index: int
    head_dim: int
