"""Rotary position embedding: angles from a RopeSpec, and turning heads by them."""

from openhearth.kernels.rope.reference import (
    Rotation,
    RotationTable,
    apply_rope,
    compute_rotation,
    inverse_frequencies,
)

__all__ = ["Rotation", "RotationTable", "apply_rope", "compute_rotation", "inverse_frequencies"]
