"""Linear layers of a model: row-major parameters, packed ones for the native kernels, or both.

`pack_weights` runs once after loading. A model that only serves keeps the packed copy alone; one that
learns keeps its parameters beside it, and both go through the same kernel.

Does not: choose the kernels (`kernels/select.py` does) or quantise.
"""

# T rows, I inputs, O outputs

from __future__ import annotations

import torch
from torch import Tensor, nn

from openhearth.kernels import select
from openhearth.kernels.linear import native
from openhearth.kernels.linear.native import PackedWeight
from openhearth.kernels.linear.reference import linear


class Linear(nn.Linear):
    """`nn.Linear` over packed rows; weights are loaded, never drawn.

    After `pack(is_trainable=False)` `weight` and `bias` are None and `packed` holds both.
    """

    packed: PackedWeight | None = None

    def reset_parameters(self) -> None:
        """Draw nothing: `nn.Linear` would."""

    def forward(self, x_TI: Tensor, out_dtype: torch.dtype | None = None) -> Tensor:
        """Return x @ weight.T + bias in out_dtype (None: that of x)."""
        return project(x_TI, self.weight, self.bias, self.packed, out_dtype)

    def pack(self, *, is_trainable: bool) -> None:
        """Pack the weight; drop the row-major one unless it is going to change."""
        self.packed = PackedWeight(self.weight, self.bias)
        if not is_trainable:
            self.weight = self.bias = None


def project(x_TI: Tensor, weight_OI: Tensor | None, bias_O: Tensor | None, packed: PackedWeight | None,
            out_dtype: torch.dtype | None = None) -> Tensor:
    """Return x @ weight.T + bias [T, O] in out_dtype (None: that of x), by the kernels that were chosen."""
    if packed is None:
        out_TO = linear(x_TI, weight_OI, bias_O)
        return out_TO if out_dtype is None else out_TO.to(out_dtype)
    if weight_OI is None:
        return native.linear(x_TI, packed, out_dtype=out_dtype)
    return native.linear_trained(x_TI, packed, weight_OI, bias_O, out_dtype=out_dtype)


def can_pack(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the chosen kernels take weights of this type, there."""
    return (device.type == "cpu" and dtype in (torch.bfloat16, torch.float32)
            and select.chosen().is_native)
