"""Linear layers of a model: row-major parameters, packed ones for the native kernels, or both.

Packing runs once after loading. A model that only serves keeps the packed copy alone; one that learns
keeps its parameters beside it, and both go through the same kernel. Blocks of a GGUF file and quantised
weights exist packed only: they are frozen.

Does not: choose the kernels (`kernels/select.py` does) or the formats (`spec/weights.py`).
"""

# T rows, I inputs, O outputs

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from openhearth.kernels import select
from openhearth.kernels.linear import native
from openhearth.kernels.linear.packed import PackedWeight, RowParts, Rows
from openhearth.kernels.linear.reference import linear
from openhearth.kernels.linear.streamed import StreamedWeight
from openhearth.kernels.lora import AdapterRows
from openhearth.kernels.lora_trained import TrainedPair, adapted
from openhearth.kernels.traced import Traced

if TYPE_CHECKING:
    from openhearth.models.pairs import LoraPair


class Linear(nn.Linear):
    """`nn.Linear` over packed rows; weights are loaded, never drawn.

    After `pack(is_trainable=False)` `weight` and `bias` are None and `packed` holds both. lora: the pair of
    each adapter slot, None where an adapter leaves this layer alone.
    """

    packed: PackedWeight | None = None
    lora: tuple[LoraPair | None, ...] = ()

    def reset_parameters(self) -> None:
        """Draw nothing: `nn.Linear` would."""

    def forward(self, x_TI: Tensor, adapters: AdapterRows | None = None,
                out_dtype: torch.dtype | None = None) -> Tensor:
        """Return x @ weight.T + bias in out_dtype (None: that of x), with what the rows' adapters add."""
        if (pair := self._learning_pair(x_TI, adapters)) is not None:
            return adapted(x_TI, self.packed, pair, out_dtype)
        out_TO = project(x_TI, self.weight, self.bias, self.packed, out_dtype)
        if adapters is None or not any(self.lora):
            return out_TO
        return _add_adapters(out_TO, x_TI, self, adapters)

    def _learning_pair(self, x_TI: Tensor, adapters: AdapterRows | None) -> TrainedPair | None:
        """Return the pair that all rows take, where it learns beside a frozen weight; else None."""
        if adapters is None or isinstance(x_TI, Traced) or self.packed is None or self.weight is not None:
            return None
        if len(adapters.ranges) != 1 or adapters.ranges[0][:2] != (0, len(x_TI)):
            return None
        slot = adapters.ranges[0][2]
        pair = self.lora[slot] if slot < len(self.lora) else None
        if pair is None or pair.a.weight is None or pair.a.packed is None or not torch.is_grad_enabled():
            return None
        if pair.magnitude is not None:
            return None
        return TrainedPair(pair.a.weight, pair.a.packed, pair.b.weight, pair.b.packed, pair.scale)

    def numbers(self) -> Tensor:
        """Return the weight as it multiplies, float32 [O, I]; a copy where it is packed only."""
        return self.packed.unpack(torch.float32) if self.weight is None else self.weight.detach().float()

    def pack(self, rows: Rows | RowParts | None = None, *, is_trainable: bool = False) -> None:
        """Pack rows, None: the weight; drop the row-major one unless it is going to change."""
        self.packed = PackedWeight(self.weight if rows is None else rows, self.bias)
        if not is_trainable:
            self.weight = self.bias = None

    def stream(self, packed: StreamedWeight) -> None:
        """Multiply with a weight that is read when it is used."""
        self.packed = packed
        self.weight = self.bias = None


class Embedding(nn.Embedding):
    """A table of token rows, as parameter, packed, or both; a tied output matrix multiplies with it."""

    packed: PackedWeight | None = None

    @property
    def table(self) -> Tensor | PackedWeight:
        """What rows are taken from: the parameter while there is one."""
        return self.packed if self.weight is None else self.weight

    @property
    def num_bytes(self) -> int:
        """Bytes that a product with the whole table reads."""
        return self.weight.nbytes if self.packed is None else self.packed.num_bytes

    def pack(self, rows: Rows | RowParts | None = None, *, is_trainable: bool = False) -> None:
        """As `Linear.pack`."""
        self.packed = PackedWeight(self.weight if rows is None else rows)
        if not is_trainable:
            self.weight = None

    def stream(self, packed: StreamedWeight) -> None:
        """As `Linear.stream`."""
        self.packed, self.weight = packed, None

    def project(self, x_TD: Tensor) -> Tensor:
        """Return x @ table.T [T, V] in float32."""
        return project(x_TD, self.weight, None, self.packed, torch.float32)


def project(x_TI: Tensor, weight_OI: Tensor | None, bias_O: Tensor | None, packed: PackedWeight | None,
            out_dtype: torch.dtype | None = None) -> Tensor:
    """Return x @ weight.T + bias [T, O] in out_dtype (None: that of x), by the kernels that were chosen."""
    if isinstance(x_TI, Traced):
        return x_TI.recorder.linear(x_TI, packed, out_dtype)
    if packed is None:
        out_TO = linear(x_TI, weight_OI, bias_O)
        return out_TO if out_dtype is None else out_TO.to(out_dtype)
    if weight_OI is None:
        return native.linear(x_TI, packed, out_dtype=out_dtype)
    return native.linear_trained(x_TI, packed, weight_OI, bias_O, out_dtype=out_dtype)


def _add_adapters(out_TO: Tensor, x_TI: Tensor, layer: Linear, adapters: AdapterRows) -> Tensor:
    """Return out + scale * B(A(x)) for the rows whose slot has a pair; each sum rounds to out's type.

    With a magnitude, what is not bias is scaled by its gain.
    """
    pairs = layer.lora
    if isinstance(x_TI, Traced):
        x_TI.recorder.lora(x_TI, out_TO, pairs)
        return out_TO
    parts, done = [], 0
    for start, end, slot in adapters.ranges:
        pair = pairs[slot] if slot < len(pairs) else None
        if pair is not None:
            changed_TO = out_TO[start:end].float() + pair(x_TI[start:end]) * pair.scale
            if pair.magnitude is not None:
                bias_O = _bias(layer)
                changed_TO = (changed_TO - bias_O) * pair.gains(layer) + bias_O
            parts += [out_TO[done:start], changed_TO.to(out_TO.dtype)]
            done = end
    return torch.cat([*parts, out_TO[done:]])


def _bias(layer: Linear) -> Tensor | float:
    """The bias as it is added, 0.0 without one."""
    if layer.bias is not None:
        return layer.bias.float()
    has_none = layer.packed is None or layer.packed.bias_P is None
    return 0.0 if has_none else layer.packed.bias_P[:layer.out_features]


def can_pack(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the chosen kernels take weights of this type, there."""
    return (device.type == "cpu" and dtype in (torch.bfloat16, torch.float32)
            and select.chosen().is_native)
