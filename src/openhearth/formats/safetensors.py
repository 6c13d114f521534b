"""Header of a safetensors file: where each tensor lies, all checked against the file.

Layout: the safetensors format description (README of the `safetensors` project): u64 header length,
JSON header, then the tensors' bytes without gaps. At least as strict as the `safetensors` package
0.8.0, and it also refuses duplicate names and unknown fields.

Does not: follow an index (`checkpoint.py`) or read weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from openhearth.errors import BadFile, Unsupported
from openhearth.formats.json_files import parse_json
from openhearth.formats.mapping import damaged, mapped_file
from openhearth.formats.quoting import quoted
from openhearth.formats.records import TensorEntry, WeightFile

MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors package
# Commas and brackets in a header: 8 for a matrix, so 125,000 tensors in one file.
MAX_HEADER_VALUES = 1_000_000
MAX_DIMS = 16
_MAX_INT64 = 2**63 - 1

TYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
    "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}
_FIELDS = {"dtype", "shape", "data_offsets"}


def read_safetensors(path: Path) -> WeightFile:
    """Read and check the header of one safetensors file.

    Raises: ModelNotFound when there is no file; BadFile when it is truncated, corrupted or no
    safetensors file; Unsupported for an unknown dtype, by name.
    """
    with mapped_file(path) as mapping:
        size = len(mapping)
        if size < 8:
            raise _broken(path, f"it has {size} bytes; the length of the header alone takes 8")
        header_bytes = int.from_bytes(mapping[:8], "little")
        if header_bytes > MAX_HEADER_BYTES:
            raise _broken(path, f"its header is {header_bytes} bytes long, the limit is {MAX_HEADER_BYTES}")
        if header_bytes > size - 8:
            raise _broken(path, f"its header ends at byte {8 + header_bytes}, the file has {size}: "
                          "truncated or corrupted")
        raw = mapping[8:8 + header_bytes]
    if raw[:1] != b"{":
        raise _broken(path, f"its header starts with {raw[:1]!r}, expected b'{{'")
    header = parse_json(raw, path, "header", max_values=MAX_HEADER_VALUES)
    metadata = _texts(header.pop("__metadata__", {}), path)
    data_start = 8 + header_bytes
    tensors = {name: _tensor(name, fields, path, data_start) for name, fields in header.items()}
    _check_places(tensors, path, data_start, size)
    return WeightFile(path, metadata, tensors)


def _texts(value: Any, path: Path) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise _broken(path, "`__metadata__` holds something other than texts")
    return value


def _tensor(name: str, fields: Any, path: Path, data_start: int) -> TensorEntry:
    what = f"tensor {quoted(name)}"
    if not isinstance(fields, dict) or fields.keys() != _FIELDS:
        raise _broken(path, f"{what} does not have exactly the fields dtype, shape and data_offsets")
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not isinstance(dtype, str):
        raise _broken(path, f"{what} has a dtype that is no text")
    if dtype not in TYPE_BITS:
        raise Unsupported(f"{quoted(path)}: {what} has the dtype {quoted(dtype)}",
                          why="this version knows " + ", ".join(TYPE_BITS),
                          hint="fetch the model in BF16, F16 or F32")
    if not _are_counts(shape) or len(shape) > MAX_DIMS or math.prod(shape) > _MAX_INT64:
        raise _broken(path, f"{what} has the shape {quoted(shape)}; expected at most {MAX_DIMS} whole "
                      f"numbers from 0 and at most {_MAX_INT64} elements")
    if not _are_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _broken(path, f"{what} has the data_offsets {quoted(offsets)}; expected [begin, end]")
    num_bits, begin, end = math.prod(shape) * TYPE_BITS[dtype], *offsets
    if num_bits != (end - begin) * 8:
        raise _broken(path, f"{what} has {end - begin} bytes, {dtype} {shape} needs {num_bits} bits")
    return TensorEntry(name, dtype, tuple(shape), path, data_start + begin, end - begin)


def _are_counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item <= _MAX_INT64 for item in value)


def _check_places(tensors: Mapping[str, TensorEntry], path: Path, data_start: int, size: int) -> None:
    """Check that the tensors, in the order of their bytes, fill the file without gap or overlap."""
    end = data_start
    for entry in sorted(tensors.values(), key=lambda entry: (entry.offset, entry.num_bytes)):
        if entry.offset != end:
            kind = "leaves a gap before it" if entry.offset > end else "overlaps another"
            raise _broken(path, f"tensor {quoted(entry.name)} starts at byte {entry.offset}, expected {end}: "
                          f"it {kind}")
        end += entry.num_bytes
    if end != size:
        state = "truncated or corrupted" if end > size else "bytes that belong to no tensor follow"
        raise _broken(path, f"its tensors end at byte {end}, the file has {size}: {state}")


def _broken(path: Path, why: str) -> BadFile:
    return damaged(f"{quoted(path)} is not a valid safetensors file", why)
