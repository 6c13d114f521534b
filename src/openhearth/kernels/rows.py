"""What the native kernels ask of tensors before they are given their addresses."""

# T rows, N numbers of a row

from __future__ import annotations

import torch
from torch import Tensor

from openhearth.errors import UsageError


def as_rows(x_TN: Tensor, dtype: torch.dtype, num_rows: int, width: int) -> Tensor:
    """Return x with the numbers of a row side by side; rows may lie apart.

    Raises: UsageError unless x is [num_rows, width] of dtype, bfloat16 or float32, on the CPU.
    """
    if x_TN.dtype != dtype or dtype not in (torch.bfloat16, torch.float32) or x_TN.device.type != "cpu":
        raise UsageError(f"a native kernel was given {x_TN.dtype} on {x_TN.device}",
                         why=f"expected bfloat16 or float32 on the CPU, here {dtype}")
    if x_TN.shape != (num_rows, width):
        raise UsageError(f"rows of shape {list(x_TN.shape)}", why=f"expected {[num_rows, width]}")
    return x_TN if x_TN.stride(1) == 1 else x_TN.contiguous()


def as_vector(x_N: Tensor, size: int) -> Tensor:
    """Return x with its numbers side by side. Raises: UsageError unless it has size of them."""
    if x_N.shape != (size,) or x_N.device.type != "cpu":
        raise UsageError(f"weight of shape {list(x_N.shape)} on {x_N.device}",
                         why=f"expected {[size]} on the CPU")
    return x_N.contiguous()
