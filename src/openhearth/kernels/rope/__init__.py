"""Rotary position embedding: angles from a RopeSpec, and turning heads by them."""

from openhearth.kernels.rope.reference import Rotation, apply_rope, compute_rotation, inverse_frequencies

__all__ = ["Rotation", "apply_rope", "compute_rotation", "inverse_frequencies"]
