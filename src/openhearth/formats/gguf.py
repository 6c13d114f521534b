"""Header of a GGUF file: key-values and where each tensor lies, all checked against the file.

Versions 2 and 3, little-endian. Layout: the GGUF specification in ggml's docs/gguf.md and
`gguf-py` 0.19.0. Dimensions are stored innermost first and turned around here.

Does not: follow split files (`gguf_split.py`), read weights, or check what an architecture needs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from openhearth.errors import Unsupported
from openhearth.formats.ggml_types import BLOCK_TYPES, TYPE_NAMES
from openhearth.formats.gguf_values import MAX_KEY_BYTES, HeaderCursor
from openhearth.formats.mapping import mapped_file
from openhearth.formats.quoting import quoted
from openhearth.formats.records import TensorEntry, WeightFile

MAGIC = b"GGUF"
MAX_KEY_VALUES = 16384
MAX_TENSORS = 65536
MAX_TENSOR_NAME_BYTES = 256  # docs/gguf.md says 64; some converters build ggml with longer names
MAX_DIMS = 4  # GGML_MAX_DIMS
DEFAULT_ALIGNMENT = 32
MAX_ALIGNMENT = 1 << 16
_MAX_INT64 = 2**63 - 1

# Type name, shape, offset within the data section, size in bytes.
_TensorInfo = tuple[str, tuple[int, ...], int, int]


def read_gguf(path: Path) -> WeightFile:
    """Read and check the header of one GGUF file.

    Raises: ModelNotFound when there is no file; BadFile when it is truncated, corrupted or no GGUF
    file; Unsupported for version 1, later versions, big-endian files and tensor types outside
    `ggml_types.BLOCK_TYPES`, by name.
    """
    with mapped_file(path) as mapping:
        cursor = HeaderCursor(mapping, path)
        start = cursor.take(4, "the magic number")
        if mapping[start:cursor.pos] != MAGIC:
            raise cursor.broken(f"it starts with {mapping[start:cursor.pos]!r}, expected {MAGIC!r}")
        _check_version(cursor)
        num_tensors = cursor.count("the number of tensors", limit=MAX_TENSORS, item_bytes=24)
        num_key_values = cursor.count("the number of key-values", limit=MAX_KEY_VALUES, item_bytes=13)
        metadata = _read_metadata(cursor, num_key_values)
        return WeightFile(path, metadata, _read_tensors(cursor, num_tensors, _alignment(cursor, metadata)))


def _check_version(cursor: HeaderCursor) -> None:
    version = cursor.u32("the version")
    if version in (2, 3):
        return
    if version == 1:
        problem, why = "GGUF version 1", "this version reads GGUF 2 and 3; version 1 counts with 32 bits"
    elif version & 0xFFFF == 0 and version:
        problem, why = "a big-endian GGUF file", "this version reads little-endian files only"
    else:
        problem, why = f"GGUF version {version}", "this version reads GGUF 2 and 3"
    raise Unsupported(f"{quoted(cursor.path)} is {problem}", why=why,
                      hint="convert the original model again, or fetch a newer GGUF file of it")


def _read_metadata(cursor: HeaderCursor, count: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for index in range(count):
        key = cursor.string(f"key {index}", max_bytes=MAX_KEY_BYTES)
        if not key:
            raise cursor.broken(f"key {index} is empty")
        if key in metadata:
            raise cursor.broken(f"the key {quoted(key)} occurs twice")
        name = f"the value of {quoted(key)}"
        metadata[key] = cursor.value(cursor.u32(f"the type of {quoted(key)}"), name)
    return metadata


def _alignment(cursor: HeaderCursor, metadata: Mapping[str, Any]) -> int:
    value = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if not is_whole or not 8 <= value <= MAX_ALIGNMENT or value & (value - 1):
        raise cursor.broken(f"general.alignment is {quoted(value)}; expected a power of two from 8 to "
                            f"{MAX_ALIGNMENT}")
    return value


def _read_tensors(cursor: HeaderCursor, count: int, alignment: int) -> dict[str, TensorEntry]:
    infos: dict[str, _TensorInfo] = {}
    for index in range(count):
        name = cursor.string(f"the name of tensor {index}", max_bytes=MAX_TENSOR_NAME_BYTES)
        if not name:
            raise cursor.broken(f"tensor {index} has no name")
        if name in infos:
            raise cursor.broken(f"two tensors have the name {quoted(name)}")
        infos[name] = _read_tensor_info(cursor, f"tensor {quoted(name)}", alignment)
    data_start = -(-cursor.pos // alignment) * alignment
    tensors = {name: TensorEntry(name, type_name, shape, cursor.path, data_start + offset, num_bytes)
               for name, (type_name, shape, offset, num_bytes) in infos.items()}
    _check_places(cursor, tensors)
    return tensors


def _read_tensor_info(cursor: HeaderCursor, what: str, alignment: int) -> _TensorInfo:
    num_dims = cursor.u32(f"the number of dimensions of {what}")
    if num_dims > MAX_DIMS:
        raise cursor.broken(f"{what} has {num_dims} dimensions, the limit is {MAX_DIMS}")
    shape = tuple(cursor.u64(f"dimension {axis} of {what}") for axis in range(num_dims))[::-1]
    num_elements = math.prod(shape)
    if min(shape, default=1) == 0 or num_elements > _MAX_INT64:
        raise cursor.broken(f"{what} has the shape {list(shape)}; expected 1 to {_MAX_INT64} elements")
    type_number = cursor.u32(f"the type of {what}")
    type_name = TYPE_NAMES.get(type_number, f"number {type_number}")
    block = BLOCK_TYPES.get(type_name)
    if block is None:
        raise Unsupported(f"{quoted(cursor.path)}: {what} has the GGML type {type_name}",
                          why="this version reads " + ", ".join(BLOCK_TYPES),
                          hint="fetch the model in another quantisation, for example Q4_K_M or Q8_0")
    row_length = shape[-1] if shape else 1
    if row_length % block.num_elements:
        raise cursor.broken(f"{what} has rows of {row_length}, type {type_name} needs a multiple of "
                            f"{block.num_elements}")
    offset = cursor.u64(f"the offset of {what}")
    if offset % alignment:
        raise cursor.broken(f"{what} has the offset {offset}, expected a multiple of {alignment}")
    return type_name, shape, offset, num_elements // block.num_elements * block.num_bytes


def _check_places(cursor: HeaderCursor, tensors: Mapping[str, TensorEntry]) -> None:
    size = len(cursor.buffer)
    previous_end, previous = 0, ""
    for entry in sorted(tensors.values(), key=lambda entry: entry.offset):
        end = entry.offset + entry.num_bytes
        if end > size:
            raise cursor.broken(f"tensor {quoted(entry.name)} ends at byte {end}, the file has {size}: "
                                "truncated or corrupted")
        if entry.offset < previous_end:
            raise cursor.broken(f"tensors {quoted(previous)} and {quoted(entry.name)} overlap at byte "
                                f"{entry.offset}")
        previous_end, previous = end, entry.name
