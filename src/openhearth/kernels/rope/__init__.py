"""Rotary position embedding: the angles of a pack."""

from __future__ import annotations

from torch import Tensor

from openhearth.kernels.rope import reference
from openhearth.kernels.rope.reference import Rotation, RotationTable
from openhearth.kernels.traced import TracedPack, TracedRotation
from openhearth.spec import RopeSpec

__all__ = ["compute_rotation"]

_MOST_POSITIONS = 2**31


def compute_rotation(rope: RopeSpec, inverse_frequencies_F: Tensor,
                     positions_T: Tensor | TracedPack) -> Rotation | TracedRotation:
    """Return the angles of a pack of positions; see the reference. A recorded forward takes a table's."""
    if isinstance(positions_T, TracedPack):
        table = RotationTable(rope, inverse_frequencies_F, _MOST_POSITIONS)
        return positions_T.recorder.rotation(table, 2 * inverse_frequencies_F.shape[0])
    return reference.compute_rotation(rope, inverse_frequencies_F, positions_T)
