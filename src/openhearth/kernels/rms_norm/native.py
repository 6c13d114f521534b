"""Root-mean-square norm on the CPU: native/rows.h, callable under autograd.

A row has the same bits alone, in any pack, with any number of threads. With u = 2^-24, the float32
result is within (D / 8 + 12) u of the exact one, relatively: the squares are summed in at least 32 chains
(Higham, Accuracy and Stability of Numerical Algorithms, 3.1), the rest rounds six times. Then one
rounding to the type of the weight.
"""

# T rows, D numbers of a row

from __future__ import annotations

import torch
from torch import Tensor

from openhearth.errors import UsageError
from openhearth.kernels import select
from openhearth.kernels.rows import as_rows, as_vector


def rms_norm(x_TD: Tensor, weight_D: Tensor, eps: float, *, isa: str | None = None) -> Tensor:
    """As the reference, on the CPU; weight and x of one type, or bfloat16 and float32. Raises: UsageError."""
    if torch.is_grad_enabled() and (x_TD.requires_grad or weight_D.requires_grad):
        return _RmsNorm.apply(x_TD, weight_D, eps, isa)
    return _norm(x_TD, weight_D, eps, isa)


def add_rms_norm(x_TD: Tensor, delta_TD: Tensor, weight_D: Tensor, eps: float, *,
                 isa: str | None = None) -> tuple[Tensor, Tensor]:
    """As the reference, on the CPU; the types as for `rms_norm`, delta that of x. Raises: UsageError."""
    if torch.is_grad_enabled() and any(one.requires_grad for one in (x_TD, delta_TD, weight_D)):
        return _AddRmsNorm.apply(x_TD, delta_TD, weight_D, eps, isa)
    return _add_norm(x_TD, delta_TD, weight_D, eps, isa)


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_TD, weight_D, eps, isa):
        ctx.save_for_backward(x_TD, weight_D)
        ctx.eps = eps
        return _norm(x_TD, weight_D, eps, isa)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_TD):
        x_TD, weight_D = ctx.saved_tensors
        return *_gradients(x_TD, weight_D, grad_TD, None, ctx.eps, ctx.needs_input_grad[1]), None, None


class _AddRmsNorm(torch.autograd.Function):
    """Keeps the sum for the backward pass, which is the next norm's x, and neither x nor delta."""

    @staticmethod
    def forward(ctx, x_TD, delta_TD, weight_D, eps, isa):
        sum_TD, out_TD = _add_norm(x_TD, delta_TD, weight_D, eps, isa)
        ctx.save_for_backward(sum_TD, weight_D)
        ctx.eps = eps
        return sum_TD, out_TD

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_sum_TD, grad_TD):
        sum_TD, weight_D = ctx.saved_tensors
        grad_x_TD, grad_weight_D = _gradients(sum_TD, weight_D, grad_TD, grad_sum_TD, ctx.eps,
                                              ctx.needs_input_grad[2])
        return grad_x_TD, grad_x_TD, grad_weight_D, None, None


def _gradients(x_TD: Tensor, weight_D: Tensor, grad_TD: Tensor, added_TD: Tensor | None, eps: float,
               needs_weight: bool) -> tuple[Tensor, Tensor | None]:
    """Return the gradients of x, with added to it, and of the weight.

    With n = x r, r = 1 / sqrt(mean(x^2) + eps), and g = grad * weight: dx = r (g - n mean(g n)), and the
    weight's is the sum of grad * n over the rows; in float32.
    """
    wide_TD, grad_TD = x_TD.float(), grad_TD.float()
    width = x_TD.shape[1]
    scale_T1 = (wide_TD.square().mean(1, keepdim=True) + eps).rsqrt_()
    grad_weight_D = None
    if needs_weight:
        grad_weight_D = (grad_TD * wide_TD).mul_(scale_T1).sum(0).to(weight_D.dtype)
    grad_x_TD = grad_TD * weight_D.float()
    shared_T1 = torch.linalg.vecdot(grad_x_TD, wide_TD)[:, None] * scale_T1.pow(3).div_(width)
    grad_x_TD.mul_(scale_T1).addcmul_(wide_TD, shared_T1, value=-1)
    if added_TD is not None:
        grad_x_TD.add_(added_TD)
    return grad_x_TD.to(x_TD.dtype), grad_weight_D


def _norm(x_TD: Tensor, weight_D: Tensor, eps: float, isa: str | None) -> Tensor:
    num_rows, width = x_TD.shape
    x_TD, weight_D = as_rows(x_TD, x_TD.dtype, num_rows, width), _as_weight(weight_D, x_TD)
    out_TD = torch.empty(num_rows, width, dtype=weight_D.dtype)
    select.native().rms_norm(select.isa_number(isa), x_TD.data_ptr(), x_TD.stride(0), 0, 0,
                             weight_D.data_ptr(), 0, out_TD.data_ptr(), num_rows, width, eps,
                             x_TD.dtype == torch.bfloat16, weight_D.dtype == torch.bfloat16)
    return out_TD


def _add_norm(x_TD: Tensor, delta_TD: Tensor, weight_D: Tensor, eps: float,
              isa: str | None) -> tuple[Tensor, Tensor]:
    num_rows, width = x_TD.shape
    x_TD, weight_D = as_rows(x_TD, x_TD.dtype, num_rows, width), _as_weight(weight_D, x_TD)
    delta_TD = as_rows(delta_TD, x_TD.dtype, num_rows, width)
    sum_TD = torch.empty(num_rows, width, dtype=x_TD.dtype)
    out_TD = torch.empty(num_rows, width, dtype=weight_D.dtype)
    select.native().rms_norm(select.isa_number(isa), x_TD.data_ptr(), x_TD.stride(0), delta_TD.data_ptr(),
                             delta_TD.stride(0), weight_D.data_ptr(), sum_TD.data_ptr(), out_TD.data_ptr(),
                             num_rows, width, eps, x_TD.dtype == torch.bfloat16,
                             weight_D.dtype == torch.bfloat16)
    return sum_TD, out_TD


def _as_weight(weight_D: Tensor, x_TD: Tensor) -> Tensor:
    if weight_D.dtype != x_TD.dtype and (x_TD.dtype, weight_D.dtype) != (torch.float32, torch.bfloat16):
        raise UsageError(f"a norm of {x_TD.dtype} rows has a weight of {weight_D.dtype}",
                         why="expected one type, or float32 rows and a bfloat16 weight")
    return as_vector(weight_D, x_TD.shape[1])
