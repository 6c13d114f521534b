"""SwiGLU's gate in plain torch. Source: arXiv 2002.05202."""

# T rows, F feed-forward

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def swiglu(gate_TF: Tensor, up_TF: Tensor) -> Tensor:
    """Return silu(gate) * up; silu is rounded to the type of gate before the product."""
    return functional.silu(gate_TF) * up_TF
