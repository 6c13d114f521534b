"""The gate of a feed-forward layer; the choice of its kernels."""

from __future__ import annotations

from torch import Tensor

from openhearth.kernels import select
from openhearth.kernels.swiglu import native, reference
from openhearth.kernels.traced import Traced

__all__ = ["swiglu"]


def swiglu(gate_TF: Tensor, up_TF: Tensor) -> Tensor:
    """Return silu(gate) * up, by the kernels that were chosen."""
    if isinstance(gate_TF, Traced):
        return gate_TF.recorder.gate(gate_TF, up_TF)
    kernels = native if select.covers(gate_TF.dtype, gate_TF.device) else reference
    return kernels.swiglu(gate_TF, up_TF)
