"""Multiplication with a weight matrix."""

from openhearth.kernels.linear.reference import linear

__all__ = ["linear"]
