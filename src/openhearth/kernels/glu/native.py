"""Gated linear units on the CPU: native/rows.h, callable under autograd.

Every number has the same bits in any pack, with any number of threads. In float32 an activation is within
2^-20 (silu) or 2^-15 (gelu, whose exponent up to 87 carries three roundings) of the exact one, relatively,
and 0 where its exponential would be below e^-87.3 (exact: above -1.1e-36); bfloat16 rounds it before the
product, as the reference does. Gradients are computed in float32 and rounded once.
"""

# T rows, F feed-forward

from __future__ import annotations

import torch
from torch import Tensor

from openhearth.errors import UsageError
from openhearth.kernels import select
from openhearth.kernels.glu.reference import Activation
from openhearth.kernels.rows import as_rows


def glu(gate_TF: Tensor, up_TF: Tensor, activation: Activation = "silu", *, isa: str | None = None) -> Tensor:
    """As the reference; both of one type, bfloat16 or float32, on the CPU. Raises: UsageError."""
    if activation not in ("silu", "gelu_tanh"):
        raise UsageError(f"activation `{activation}`", why="expected silu or gelu_tanh")
    if torch.is_grad_enabled() and (gate_TF.requires_grad or up_TF.requires_grad):
        return _Glu.apply(gate_TF, up_TF, activation, isa)
    return _glu(activation, isa, gate_TF, up_TF)


class _Glu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gate_TF, up_TF, activation, isa):
        ctx.save_for_backward(gate_TF, up_TF)
        ctx.activation, ctx.isa = activation, isa
        return _glu(activation, isa, gate_TF, up_TF)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_TF):
        gate_TF, up_TF, grad_TF = (one.contiguous() for one in (*ctx.saved_tensors, grad_TF))
        grad_gate_TF, grad_up_TF = torch.empty_like(gate_TF), torch.empty_like(up_TF)
        select.native().glu_grad(
            select.isa_number(ctx.isa), gate_TF.data_ptr(), up_TF.data_ptr(), grad_TF.data_ptr(),
            grad_gate_TF.data_ptr(), grad_up_TF.data_ptr(), *gate_TF.shape, gate_TF.dtype == torch.bfloat16,
            ctx.activation == "gelu_tanh")
        return grad_gate_TF, grad_up_TF, None, None


def _glu(activation: Activation, isa: str | None, gate_TF: Tensor, up_TF: Tensor) -> Tensor:
    num_rows, width = gate_TF.shape
    gate_TF = as_rows(gate_TF, gate_TF.dtype, num_rows, width)
    up_TF = as_rows(up_TF, gate_TF.dtype, num_rows, width)
    out_TF = torch.empty(num_rows, width, dtype=gate_TF.dtype)
    select.native().glu(select.isa_number(isa), gate_TF.data_ptr(), gate_TF.stride(0), up_TF.data_ptr(),
                        up_TF.stride(0), out_TF.data_ptr(), num_rows, width,
                        gate_TF.dtype == torch.bfloat16, activation == "gelu_tanh")
    return out_TF
