"""Gated linear units in plain torch. Source: arXiv 2002.05202."""

# T rows, F feed-forward

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn import functional

Activation = Literal["silu", "gelu_tanh"]
"""SwiGLU's and GEGLU's; gelu in the form with tanh (arXiv 1606.08415, section 2)."""


def glu(gate_TF: Tensor, up_TF: Tensor, activation: Activation = "silu") -> Tensor:
    """Return activation(gate) * up; the activation is rounded to the type of gate before the product."""
    if activation == "silu":
        return functional.silu(gate_TF) * up_TF
    return functional.gelu(gate_TF, approximate="tanh") * up_TF
