"""Weights in the layout of the native kernels: native/linear.h and native/linear_blocks.h.

A pack holds plain numbers, or the blocks of a GGUF file as they are: the same whole numbers and scales in
another order, nothing is quantised again. What is made from a file is made a few rows at a time, so that a
pack takes little more memory than it holds.

Does not: multiply (`native.py` does), or choose a format.
"""

# T rows, K inputs, N outputs, P outputs padded to whole panels, B bytes of a row of blocks

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from openhearth.errors import Unsupported, UsageError
from openhearth.formats.ggml_types import BLOCK_TYPES
from openhearth.kernels.memory import take_bytes
from openhearth.kernels.select import NATIVE_ISAS, isa_number, native

PANEL = 32
FORMATS = {"F32": 0, "BF16": 1, "Q8_0": 2, "Q4_0": 3, "Q4_1": 4, "Q4_K": 5}
"""Names as in GGUF, with the numbers of native/linear.h."""
_BYTES_AFTER = 4
"""From the number of a block format to that of the same format over bytes."""
BLOCK_FORMATS = ("Q8_0", "Q4_0", "Q4_1", "Q4_K")
_NUMBERS = {torch.float32: "F32", torch.bfloat16: "BF16"}


@dataclass(frozen=True)
class Rows:
    """Rows of a weight as a checkpoint holds them.

    data: [N, K] numbers, bfloat16 or float32 with neighbouring inputs side by side, or uint8 [N, B] of
    blocks. source_rows: int64, the row of data that each of these rows is; None: all of them in order.
    takes_bytes: of blocks, whether activations are rounded to 8 bits where the CPU has no tiles (`native`).
    Example: ``Rows(torch.eye(3), "F32", num_inputs=3)``.
    """

    data: Tensor
    format: str
    num_inputs: int
    source_rows: Tensor | None = None
    takes_bytes: bool = False

    @property
    def num_rows(self) -> int:
        """Outputs of the weight."""
        return len(self.data if self.source_rows is None else self.source_rows)


@dataclass(frozen=True)
class RowParts:
    """Rows of a weight that are made a part at a time, as they are packed.

    make: gives so many rows from one on; they are valid until its next call. shape: [N, K] of the whole.
    rows_at_once: of a part, but the last one may be shorter. takes_bytes: as in Rows.
    Example: ``RowParts(lambda start, count: number_rows(all_NK[start:start + count]), (8, 32), "F32", 4)``.
    """

    make: Callable[[int, int], Rows]
    shape: tuple[int, int]
    format: str
    rows_at_once: int
    takes_bytes: bool = False

    @classmethod
    def whole(cls, rows: Rows) -> RowParts:
        """Return rows that exist, as one part."""
        return cls(lambda start, count: rows, (rows.num_rows, rows.num_inputs), rows.format,
                   max(1, rows.num_rows), rows.takes_bytes)

    def chosen(self, row_ids_T: Tensor) -> RowParts:
        """Return single rows, in the order of their ids."""
        return RowParts(lambda at, count: self.make(int(row_ids_T[at]), 1), (len(row_ids_T), self.shape[1]),
                        self.format, 1, self.takes_bytes)

    def each(self) -> Iterator[tuple[int, Rows]]:
        """Make the parts one after the other, each with the row that it begins at."""
        for start in range(0, self.shape[0], self.rows_at_once):
            yield start, self.make(start, min(self.rows_at_once, self.shape[0] - start))


def number_rows(weight_NK: Tensor) -> Rows:
    """Return the rows of a plain weight. Raises: Unsupported for another type or device, UsageError."""
    if weight_NK.dtype not in _NUMBERS or weight_NK.device.type != "cpu" or weight_NK.layout != torch.strided:
        raise Unsupported(f"native kernels cannot pack {weight_NK.dtype} on {weight_NK.device}",
                          why="expected bfloat16 or float32 on the CPU")
    if weight_NK.dim() != 2:
        raise UsageError(f"weight of shape {list(weight_NK.shape)}", why="expected [outputs, inputs]")
    data_NK = weight_NK.detach()
    data_NK = data_NK if data_NK.stride(1) == 1 else data_NK.contiguous()
    return Rows(data_NK, _NUMBERS[weight_NK.dtype], weight_NK.shape[1])


def block_rows(raw: Tensor, format: str, shape: Sequence[int], source_rows: Tensor | None = None) -> Rows:
    """Return the rows of a GGUF tensor. raw: uint8 [num_bytes], not copied; shape: [N, K].

    source_rows: see Rows. Raises: Unsupported for a type that is not packed as it is.
    """
    if format not in BLOCK_FORMATS:
        raise Unsupported(f"weights of type {format} are not packed as they are",
                          why="expected " + ", ".join(BLOCK_FORMATS))
    block = BLOCK_TYPES[format]
    num_rows, num_inputs = shape
    if num_inputs == 0 or num_inputs % block.num_elements or raw.numel() * block.num_elements != (
            num_rows * num_inputs * block.num_bytes):
        raise UsageError(f"{raw.numel()} bytes of {format} for a weight {list(shape)}",
                         why=f"rows are blocks of {block.num_elements} numbers in {block.num_bytes} bytes")
    return Rows(raw.view(num_rows, -1), format, num_inputs, source_rows)


def quantize(weight_NK: Tensor, format: str, *, isa: str | None = None, room: Tensor | None = None) -> Rows:
    """Quantise a plain weight in groups of 32 inputs: "Q8_0", or "Q4_1" with a float16 minimum per group.

    Q8_0 rounds to multiples of a group's largest size / 127. Q4_1 takes, of a few ranges and least
    squares fits, the scale and minimum that leave the least squared error. Every isa gives the same bytes;
    None is the process's choice. room: uint8 that the blocks are written to, None for memory of their own.
    Raises: UsageError for an isa missing here; Unsupported for another format, or inputs that are no
    multiple of 32.
    """
    rows = number_rows(weight_NK)
    if format not in ("Q8_0", "Q4_1") or rows.num_inputs % 32 or rows.num_inputs == 0:
        raise Unsupported(f"a weight with {rows.num_inputs} inputs cannot become {format}",
                          why="weights become Q8_0 or Q4_1, in groups of 32 inputs")
    num_bytes = rows.num_inputs // 32 * BLOCK_TYPES[format].num_bytes
    room = torch.empty(rows.num_rows * num_bytes, dtype=torch.uint8) if room is None else room
    blocks_NB = room[:rows.num_rows * num_bytes].view(rows.num_rows, num_bytes)
    module_of_kernels().quantize_rows(isa_number(isa), rows.data.data_ptr(), _stride_bytes(rows.data),
                                      rows.format == "BF16", rows.num_rows, rows.num_inputs, FORMATS[format],
                                      blocks_NB.data_ptr())
    return Rows(blocks_NB, format, rows.num_inputs)


class PackedWeight:
    """A weight [N, K] and its bias, in the kernels' own layout.

    `packed` holds the bytes, padded to 32 outputs (and, bf16, to 32 inputs); `bias_P` is float32 or
    None; `dtype` is that of the activations. The row-major original is not kept.
    Example: ``PackedWeight(torch.eye(3), torch.ones(3))``.
    """

    def __init__(self, weight_NK: Tensor | Rows | RowParts, bias_N: Tensor | None = None) -> None:
        """Pack a CPU weight, bfloat16, float32 or blocks, and a bias of either number type.

        Raises: Unsupported for another type or device, or without native kernels; UsageError for shapes.
        """
        self.versions = versions(weight_NK, bias_N) if isinstance(weight_NK, Tensor) else (None,)
        rows = number_rows(weight_NK) if isinstance(weight_NK, Tensor) else weight_NK
        parts = rows if isinstance(rows, RowParts) else RowParts.whole(rows)
        self._describe(parts)
        self.packed = take_bytes(self.num_bytes)
        self._write_parts(parts)
        self._set_bias(bias_N)

    @property
    def num_bytes(self) -> int:
        """Of the pack."""
        return self.native.packed_bytes(self.num_outputs, self.num_inputs, self.format_number)

    def _describe(self, parts: RowParts) -> None:
        self.native = module_of_kernels()
        self.format, (self.num_outputs, self.num_inputs) = parts.format, parts.shape
        self.format_number = number_of(self.format, takes_bytes=parts.takes_bytes)
        self.dtype = torch.float32 if self.format == "F32" else torch.bfloat16

    def _write_parts(self, parts: RowParts) -> None:
        for start, rows in parts.each():
            self.write(rows, start)

    def write(self, rows: Rows, start: int) -> None:
        """Replace rows from start on. Raises: UsageError for another format or rows that do not fit."""
        if (rows.format, rows.num_inputs) != (self.format, self.num_inputs) or not (
                0 <= start <= self.num_outputs - rows.num_rows):
            raise UsageError(f"weight of shape {[rows.num_rows, rows.num_inputs]} and type {rows.format}",
                             why=f"the pack holds [{self.num_outputs}, {self.num_inputs}] of {self.format}")
        order = rows.source_rows
        if order is not None and not (order.dtype == torch.int64 and order.is_contiguous()
                                      and _are_within(order, len(rows.data))):
            raise UsageError("source rows are no rows of the weight", why="expected one int64 per row")
        self.native.pack_rows(rows.data.data_ptr(), _stride_bytes(rows.data),
                              0 if order is None else order.data_ptr(), rows.num_rows, rows.num_inputs,
                              self.format_number, self.packed.data_ptr(), start)

    def repack(self, weight_NK: Tensor, bias_N: Tensor | None = None) -> None:
        """Replace the contents by a weight of the same shape and type. Raises: as the constructor."""
        rows = number_rows(weight_NK)
        if rows.num_rows != self.num_outputs:
            raise UsageError(f"weight of shape {list(weight_NK.shape)} and type {weight_NK.dtype}",
                             why=f"the pack holds [{self.num_outputs}, {self.num_inputs}] of {self.format}")
        self.write(rows, 0)
        self._set_bias(bias_N)
        self.versions = versions(weight_NK, bias_N)

    def renew(self, weight_NK: Tensor, bias_N: Tensor | None) -> None:
        """Repack when a parameter changed in place since; as `linear_trained` says. Raises: as `repack`."""
        found = versions(weight_NK, bias_N)
        if found != self.versions or None in found:
            self.repack(weight_NK, bias_N)

    def unpack(self, dtype: torch.dtype | None = None) -> Tensor:
        """Return the weight [N, K] as numbers of type dtype, None: that of the activations.

        Plain numbers come back bit for bit; blocks are the float32 that the `gguf` package gives,
        rounded to nearest for bfloat16.
        """
        return self._rows(None, self.num_outputs, dtype)

    def transposed(self) -> PackedWeight:
        """Return the weight [K, N] that `unpack` would give, packed, without the bias: a copy of its own.

        It is meant to be dropped soon, and comes from the heap.
        """
        out = PackedWeight.__new__(PackedWeight)
        out.native, out.dtype = self.native, self.dtype
        out.format = "F32" if self.format == "F32" else "BF16"
        out.format_number = FORMATS[out.format]
        out.num_outputs, out.num_inputs = self.num_inputs, self.num_outputs
        out.packed = torch.empty(self.native.packed_bytes(out.num_outputs, out.num_inputs, out.format_number),
                                 dtype=torch.uint8)
        self.native.transpose_packed(self.packed.data_ptr(), self.num_outputs, self.num_inputs,
                                     self.format_number, out.packed.data_ptr())
        out.bias_P, out.versions = None, (None,)
        return out

    def gather_rows(self, row_ids_T: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Return chosen rows [T, K] as `unpack` would. Raises: UsageError for ids that are no rows."""
        self._check_rows(row_ids_T)
        return self._rows(row_ids_T.to("cpu", torch.int64).contiguous(), row_ids_T.shape[0], dtype)

    def _check_rows(self, row_ids_T: Tensor) -> None:
        if not _are_within(row_ids_T, self.num_outputs):
            raise UsageError(f"row ids from {int(row_ids_T.min())} to {int(row_ids_T.max())}",
                             why=f"the weight has {self.num_outputs} rows")

    def _rows(self, row_ids_T: Tensor | None, num_rows: int, dtype: torch.dtype | None) -> Tensor:
        dtype = self.dtype if dtype is None else dtype
        own_dtype = torch.float32 if self.format == "F32" else dtype
        out_TK = torch.empty(num_rows, self.num_inputs, dtype=own_dtype)
        self.native.unpack_rows(self.packed.data_ptr(), 0 if row_ids_T is None else row_ids_T.data_ptr(),
                                num_rows, self.num_inputs, self.format_number, own_dtype == torch.bfloat16,
                                out_TK.data_ptr())
        return out_TK.to(dtype)

    def _set_bias(self, bias_N: Tensor | None) -> None:
        if bias_N is None:
            self.bias_P: Tensor | None = None
            return
        if bias_N.shape != (self.num_outputs,):
            raise UsageError(f"bias of shape {list(bias_N.shape)}", why=f"expected [{self.num_outputs}]")
        if getattr(self, "bias_P", None) is None:  # written in place later on: programs keep its address
            self.bias_P = torch.zeros((self.num_outputs + PANEL - 1) // PANEL * PANEL)
        self.bias_P[:self.num_outputs] = bias_N.detach()


def number_of(format: str, *, takes_bytes: bool) -> int:
    """Return the number of a format in native/linear.h."""
    return FORMATS[format] + (_BYTES_AFTER if takes_bytes and format in BLOCK_FORMATS else 0)


def versions(weight_NK: Tensor, bias_N: Tensor | None) -> tuple[object, ...]:
    """What changes when a parameter is replaced or written; None where torch keeps no count."""
    return tuple(None if tensor.is_inference() else (tensor.data_ptr(), tensor._version)
                 for tensor in (weight_NK, bias_N) if tensor is not None)


def module_of_kernels() -> ModuleType:
    """Return the extension module. Raises: Unsupported where it does not run."""
    module = native()
    if module is None or module.missing(NATIVE_ISAS["avx2"]):
        raise Unsupported("this installation has no native kernels for this CPU", hint="HEARTH_ISA=reference")
    return module


def _stride_bytes(data: Tensor) -> int:
    return data.stride(0) * data.element_size()


def _are_within(row_ids: Tensor, num_rows: int) -> bool:
    return row_ids.numel() == 0 or (int(row_ids.min()) >= 0 and int(row_ids.max()) < num_rows)
