"""SwiGLU's gate on the CPU: native/rows.h, callable under autograd.

Every number has the same bits in any pack, with any number of threads. silu in float32 is within 2^-20
of the exact one, relatively, and 0 below -87.3 (exact: above -1.1e-36); bfloat16 rounds it before the
product, as the reference does.
"""

# T rows, F feed-forward

from __future__ import annotations

import functools

import torch
from torch import Tensor

from openhearth.kernels import recompute, select
from openhearth.kernels.rows import as_rows
from openhearth.kernels.swiglu import reference


def swiglu(gate_TF: Tensor, up_TF: Tensor, *, isa: str | None = None) -> Tensor:
    """As the reference; both of one type, bfloat16 or float32, on the CPU. Raises: UsageError."""
    return recompute.call(functools.partial(_swiglu, isa=isa), reference.swiglu, gate_TF, up_TF)


def _swiglu(gate_TF: Tensor, up_TF: Tensor, isa: str | None) -> Tensor:
    num_rows, width = gate_TF.shape
    gate_TF = as_rows(gate_TF, gate_TF.dtype, num_rows, width)
    up_TF = as_rows(up_TF, gate_TF.dtype, num_rows, width)
    out_TF = torch.empty(num_rows, width, dtype=gate_TF.dtype)
    select.native().swiglu(select.isa_number(isa), gate_TF.data_ptr(), gate_TF.stride(0), up_TF.data_ptr(),
                           up_TF.stride(0), out_TF.data_ptr(), num_rows, width,
                           gate_TF.dtype == torch.bfloat16)
    return out_TF
