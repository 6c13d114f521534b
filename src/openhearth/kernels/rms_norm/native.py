"""Root-mean-square norm on the CPU: native/rows.h, callable under autograd.

A row has the same bits alone, in any pack, with any number of threads. With u = 2^-24, the float32
result is within (D / 8 + 12) u of the exact one, relatively: the squares are summed in at least 32 chains
(Higham, Accuracy and Stability of Numerical Algorithms, 3.1), the rest rounds six times. Then one
rounding to the type of the weight.
"""

# T rows, D numbers of a row

from __future__ import annotations

import functools

import torch
from torch import Tensor

from openhearth.errors import UsageError
from openhearth.kernels import recompute, select
from openhearth.kernels.rms_norm import reference
from openhearth.kernels.rows import as_rows, as_vector


def rms_norm(x_TD: Tensor, weight_D: Tensor, eps: float, *, isa: str | None = None) -> Tensor:
    """As the reference, on the CPU; weight and x of one type, or bfloat16 and float32. Raises: UsageError."""
    return recompute.call(functools.partial(_norm, eps=eps, isa=isa),
                          functools.partial(reference.rms_norm, eps=eps), x_TD, weight_D)


def add_rms_norm(x_TD: Tensor, delta_TD: Tensor, weight_D: Tensor, eps: float, *,
                 isa: str | None = None) -> tuple[Tensor, Tensor]:
    """As the reference, on the CPU; the types as for `rms_norm`, delta that of x. Raises: UsageError."""
    return recompute.call(functools.partial(_add_norm, eps=eps, isa=isa),
                          functools.partial(reference.add_rms_norm, eps=eps), x_TD, delta_TD, weight_D)


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
