"""Experts that a checkpoint holds fused: a layer in one tensor, inputs before outputs, halves in turns.

gpt-oss stores `experts.gate_up_proj` [experts, inputs, 2 * outputs], an output of the gate and one of the
other half in turns, or the same as MXFP4 (`_blocks` [experts, 2 * outputs, inputs / 32, 16] and `_scales`).
Here every expert's half is a matrix of its own: adapters and quantised forms work as for other models.

Does not: write MXFP4.
"""

# E experts, N outputs, K inputs, S halves that share a tensor

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from openhearth.formats import map_tensor
from openhearth.formats.records import Checkpoint, TensorEntry
from openhearth.kernels.dequant.mxfp4 import dequantize_mxfp4_into, mxfp4_as_q8_0
from openhearth.kernels.dequant.reference import bytes_tensor

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class FusedPlace:
    """Which part of a tensor a parameter is: of an expert, every step-th output from the first on.

    Example: ``FusedPlace("model.layers.0.mlp.experts.gate_up_proj", expert=3, first=1, step=2)``.
    """

    name: str
    expert: int
    first: int = 0
    step: int = 1


@dataclass(frozen=True)
class FusedSource:
    """Where a fused parameter comes from; takes the place of `sources.Source`.

    entry: the expert's part of the stack: plain [K, N * S], a bias [N * S], or blocks [N * S, K / 32, 16]
    with scales [N * S, K / 32]. Example: ``FusedSource(part, place, scales=None)``.
    """

    entry: TensorEntry
    place: FusedPlace
    scales: TensorEntry | None = None
    row_order: None = None
    added: float = 0.0

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the parameter."""
        inputs = self.entry.shape[:-1] if self.scales is None else (self.entry.shape[1] * 32,)
        return self.num_outputs // self.place.step, *inputs

    @property
    def num_outputs(self) -> int:
        """Of all halves."""
        return self.entry.shape[-1 if self.scales is None else 0]

    @property
    def num_bytes(self) -> int:
        """Bytes in the file, shared evenly by the halves."""
        held = self.entry.num_bytes + (0 if self.scales is None else self.scales.num_bytes)
        return held // self.place.step

    def fill(self, out: Tensor) -> Tensor:
        """Fill out, of the parameter's shape, and return it."""
        return self.fill_rows(out, 0)

    def fill_rows(self, out: Tensor, start: int) -> Tensor:
        """Fill out with outputs from one on, and return it."""
        rows = self._outputs(start, len(out))
        raw = bytes_tensor(map_tensor(self.entry))
        if self.scales is None:
            numbers = raw.view(_DTYPES[self.entry.type]).view(self.entry.shape)[..., rows]
            return out.copy_(numbers.transpose(0, -1))
        scales = bytes_tensor(map_tensor(self.scales)).view(self.scales.shape)
        return dequantize_mxfp4_into(raw.view(self.entry.shape)[rows], scales[rows], out)

    def stored_rows(self, start: int, count: int) -> None:
        """Return None: no row of a fused tensor lies in the file as it is packed."""

    def as_q8_0(self, start: int, count: int) -> Tensor | None:
        """Return rows of Q8_0 blocks that have these very numbers, None where the file has no MXFP4."""
        if self.scales is None:
            return None
        rows = self._outputs(start, count)
        blocks, scales = (bytes_tensor(map_tensor(one)).view(one.shape)[rows]
                          for one in (self.entry, self.scales))
        return mxfp4_as_q8_0(blocks, scales, is_paired=True)

    def _outputs(self, start: int, count: int) -> slice:
        first, step = self.place.first + start * self.place.step, self.place.step
        return slice(first, first + count * step, step)


def find_fused(checkpoint: Checkpoint, place: FusedPlace) -> FusedSource | None:
    """Return where a parameter comes from, None where its tensor is missing or no stack for it."""
    scales = checkpoint.tensors.get(place.name + "_scales")
    entry = checkpoint.tensors.get(place.name if scales is None else place.name + "_blocks")
    if entry is None or (scales is not None and scales.shape != entry.shape[:-1]):
        return None
    if len(entry.shape) < 2 or place.expert >= entry.shape[0]:
        return None
    if scales is not None and (entry.type, scales.type, entry.shape[3:]) != ("U8", "U8", (16,)):
        return None
    part = None if scales is None else scales.part(place.expert)
    source = FusedSource(entry.part(place.expert), place, part)
    return None if source.shape[0] * place.step != source.num_outputs else source


def fuse(tensors: Mapping[str, Tensor], place_of: Callable[[str], FusedPlace | None]) -> dict[str, Tensor]:
    """Return parameters, or what belongs to each of them, as a checkpoint stores them."""
    found: dict[str, Tensor] = {}
    stacks: dict[str, list[tuple[FusedPlace, Tensor]]] = {}
    for name, tensor in tensors.items():
        if (place := place_of(name)) is None:
            found[name] = tensor
        else:
            stacks.setdefault(place.name, []).append((place, tensor.detach()))
    for name, parts in stacks.items():
        place, tensor = parts[0]
        num_experts = 1 + max(place.expert for place, _ in parts)
        found[name] = tensor.new_empty(num_experts, *tensor.shape[1:], tensor.shape[0] * place.step)
        for place, tensor in parts:
            found[name][place.expert, ..., place.first::place.step] = tensor.transpose(0, -1)
    return found
