"""Weights from a checkpoint into a model, one tensor at a time.

The module is built without storage, every tensor is checked by name and shape from the headers, and
only then is the first weight read. Files are mapped, not copied: peak memory stays near that of the
finished weights.

Does not: choose a dtype or the form of the weights, or share memory with the file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from openhearth.errors import UsageError
from openhearth.formats.ggml_types import BLOCK_TYPES
from openhearth.formats.records import Checkpoint
from openhearth.kernels.linear.packed import BLOCK_FORMATS, PANEL, RowParts, Rows, number_rows, quantize
from openhearth.kernels.linear.streamed import Budget, StreamedWeight
from openhearth.models.latent import LatentHeads
from openhearth.models.linear import Embedding, Linear, can_pack
from openhearth.models.registry import find_architecture
from openhearth.models.sources import AnySource, match_tensors
from openhearth.spec import ModelSpec, packed_format, text_part

OnLoad = Callable[[int, int], None]
"""Called with bytes read and bytes in all."""

_FLOAT32_MEMBERS = ("rope_factors", "e_score_correction_bias")
_NUMBERS_AT_ONCE = 1 << 21
"""Of a matrix, while it is packed: 8 MiB of float32."""


def load_model(checkpoint: Checkpoint, spec: ModelSpec, *, dtype: torch.dtype,
               weights: str | None = None, device: torch.device | str = "cpu", is_trainable: bool = False,
               resident_bytes: int | None = None, on_progress: OnLoad | None = None) -> nn.Module:
    """Return the model with its weights on device, in eval mode.

    dtype: of activations and of whatever is not quantised. weights: a form of `spec.weights` ("stored",
    "int8", "int4"; these need the native kernels and bfloat16), None for matrices in dtype.
    is_trainable: keep every weight as a parameter; otherwise the native kernels' packed copy replaces
    those of linear layers. Quantised weights are packed only, so that they cannot learn. resident_bytes: of
    the matrices that stay in memory, the others are read when they are used (`kernels/linear/streamed.py`);
    None: all stay.

    Raises: Unsupported for an architecture or tensor type that we do not have; BadFile when a tensor
    is missing, unexpected or of another shape than the spec says (each by name, before any weight is
    read), or when tied matrices differ; UsageError when weights and the other arguments exclude each other.
    """
    is_packed = can_pack(dtype, torch.device(device))
    form = _form(weights, dtype, is_packed=is_packed, is_trainable=is_trainable)
    architecture = find_architecture(spec.model_type)
    with torch.device("meta"):
        model = architecture.build(spec)
    sources = match_tensors(text_part(checkpoint), spec, architecture, model.state_dict())
    total_bytes = sum(source.num_bytes for source in sources.values())
    reader = _Reader(dtype, torch.device(device), form, total_bytes, on_progress)
    budget = None if resident_bytes is None or is_trainable or not is_packed else Budget(resident_bytes)
    for module_name, members in _by_module(sources).items():
        module = model.get_submodule(module_name)
        multiplies = isinstance(module, Linear | LatentHeads) or (
            isinstance(module, Embedding) and spec.is_tied)
        parts = None
        if is_packed and not is_trainable and isinstance(module, Linear | Embedding):
            found = reader.parts(members["weight"])
            if multiplies or budget is not None or found.format in BLOCK_FORMATS:
                parts = found
        is_passing = is_packed and not is_trainable and isinstance(module, LatentHeads)
        tensors = {member: reader.read(source, member, is_passing=is_passing and member == "weight")
                   for member, source in members.items() if parts is None or member != "weight"}
        module.load_state_dict(tensors, strict=False, assign=True)  # the names were matched above
        if parts is not None and budget is not None:
            module.stream(StreamedWeight(parts, getattr(module, "bias", None), budget))
        elif parts is not None:
            module.pack(parts)
            reader.count(members["weight"])
        elif is_packed and multiplies:
            module.pack(is_trainable=is_trainable)
    return model.eval()


def _form(weights: str | None, dtype: torch.dtype, *, is_packed: bool, is_trainable: bool) -> str:
    plain = {torch.float32: "float32", torch.bfloat16: "bfloat16"}.get(dtype, "float32")
    if weights in (None, plain):
        return plain
    if weights not in ("stored", "int8", "int4"):
        raise UsageError(f"weights `{weights}` with {dtype}", why=f"expected {plain}, stored, int8 or int4")
    if dtype != torch.bfloat16 or not is_packed:
        raise UsageError(f"weights `{weights}` with {dtype}",
                         why="quantised weights need the native kernels and bfloat16")
    if is_trainable:
        raise UsageError(f"weights `{weights}` cannot learn", why="quantised weights are frozen",
                         hint="train an adapter on them, or load them as bfloat16")
    return weights


class _Reader:
    """Reads tensors and counts what was read."""

    def __init__(self, dtype: torch.dtype, device: torch.device, form: str, total_bytes: int,
                 on_progress: OnLoad | None) -> None:
        self.dtype, self.device, self.form = dtype, device, form
        self.takes_bytes = form in ("int8", "int4")
        self.done_bytes, self.total_bytes = 0, total_bytes
        self.on_progress = on_progress
        self.scratch = self.blocks = torch.empty(0, dtype=torch.uint8)

    def parts(self, source: AnySource) -> RowParts:
        """Return a matrix as it is packed, read from the file when its parts are made."""
        format = packed_format(source.entry.type, source.entry.name, source.shape, self.form)
        rows_at_once = max(1, _NUMBERS_AT_ONCE // source.shape[1] // PANEL) * PANEL

        def make(start: int, count: int) -> Rows:
            return self._rows(source, format, start, count)

        return RowParts(make, source.shape, format, rows_at_once, self.takes_bytes)

    def _rows(self, source: AnySource, format: str, start: int, count: int) -> Rows:
        stored = source.stored_rows(start, count)
        if stored is not None and stored.format == format:
            return stored
        if format == "Q8_0" and (blocks_NB := source.as_q8_0(start, count)) is not None:
            return Rows(blocks_NB, format, source.shape[1])
        shape = (count, source.shape[1])
        if format not in BLOCK_FORMATS:
            dtype = torch.float32 if format == "F32" else torch.bfloat16
            return number_rows(source.fill_rows(self._numbers(shape, dtype, is_passing=True), start))
        if stored is not None and stored.format not in BLOCK_FORMATS and stored.source_rows is None:
            return self._quantised(stored.data, format)
        numbers_NK = source.fill_rows(self._numbers(shape, torch.float32, is_passing=True), start)
        return self._quantised(numbers_NK, format)

    def _quantised(self, numbers_NK: Tensor, format: str) -> Rows:
        block = BLOCK_TYPES[format]
        num_bytes = numbers_NK.numel() // block.num_elements * block.num_bytes
        if self.blocks.numel() < num_bytes:
            self.blocks = torch.empty(num_bytes, dtype=torch.uint8)
        return quantize(numbers_NK, format, room=self.blocks)

    def read(self, source: AnySource, member: str, *, is_passing: bool) -> Tensor:
        kept_dtype = torch.float32 if member in _FLOAT32_MEMBERS else self.dtype
        dtype = torch.float32 if source.added else kept_dtype
        out = source.fill(self._numbers(source.shape, dtype, is_passing=is_passing))
        if source.added:
            out = (out - source.added).to(kept_dtype)
        self.count(source)
        return out.to(self.device)

    def _numbers(self, shape: tuple[int, ...], dtype: torch.dtype, *, is_passing: bool) -> Tensor:
        """Room for a tensor.

        One buffer for all weights that are only passing through, as for their blocks: freed one by one,
        pieces of different sizes would leave the heap in holes that never go back to the system.
        """
        out = torch.empty(shape, dtype=dtype, device="meta")
        if not is_passing:
            return torch.empty(shape, dtype=dtype)
        if self.scratch.nbytes < out.nbytes:
            self.scratch = torch.empty(out.nbytes, dtype=torch.uint8)
        return self.scratch[:out.nbytes].view(dtype).view(shape)

    def count(self, source: AnySource) -> None:
        """Say that a source was read."""
        self.done_bytes += source.num_bytes
        if self.on_progress is not None:
            self.on_progress(self.done_bytes, self.total_bytes)


def _by_module(sources: Mapping[str, AnySource]) -> dict[str, dict[str, AnySource]]:
    """Group parameters by the module that owns them, so that each can be packed as soon as it is read."""
    groups: dict[str, dict[str, AnySource]] = {}
    for name, source in sources.items():
        module_name, _, member = name.rpartition(".")
        groups.setdefault(module_name, {})[member] = source
    return groups
