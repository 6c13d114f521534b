"""Gated linear units, SwiGLU and GEGLU; the choice of their kernels."""

from __future__ import annotations

from torch import Tensor

from openhearth.kernels import select
from openhearth.kernels.glu import native, reference
from openhearth.kernels.glu.reference import Activation
from openhearth.kernels.traced import Traced

__all__ = ["Activation", "glu"]


def glu(gate_TF: Tensor, up_TF: Tensor, activation: Activation = "silu") -> Tensor:
    """Return activation(gate) * up, by the kernels that were chosen."""
    if isinstance(gate_TF, Traced):
        return gate_TF.recorder.glu(gate_TF, up_TF, activation)
    kernels = native if select.covers(gate_TF.dtype, gate_TF.device) else reference
    return kernels.glu(gate_TF, up_TF, activation)
