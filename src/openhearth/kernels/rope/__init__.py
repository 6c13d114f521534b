"""Rotary position embedding: the angles of a pack."""

from __future__ import annotations

import functools

from torch import Tensor

from openhearth.kernels.rope import reference
from openhearth.kernels.rope.reference import Rotation
from openhearth.kernels.traced import TracedPack
from openhearth.spec import RopeSpec

__all__ = ["compute_rotation"]


def compute_rotation(rope: RopeSpec, inverse_frequencies_F: Tensor, positions_T: Tensor) -> Rotation:
    """Return the angles of a pack of positions; see the reference."""
    if isinstance(positions_T, TracedPack):
        return positions_T.recorder.rotation(
            functools.partial(reference.compute_rotation, rope, inverse_frequencies_F),
            2 * inverse_frequencies_F.shape[0])
    return reference.compute_rotation(rope, inverse_frequencies_F, positions_T)
