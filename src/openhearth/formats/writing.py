"""Writing safetensors: tensors in the order of their names, so equal contents give equal bytes.

Layout: as `safetensors.py` reads it. Data starts at a multiple of 8 bytes, as the format asks.

Does not: flush to the disk, or move the file into place.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

from openhearth.formats.safetensors import TYPE_BITS

Contents = tuple[str, tuple[int, ...], memoryview]
"""Type as safetensors names it, shape, row-major bytes."""


def write_safetensors(path: Path, tensors: Mapping[str, Contents],
                      metadata: Mapping[str, str] | None = None) -> None:
    """Write a new file. Example: ``write_safetensors(path, {"x": ("U8", (2,), memoryview(b"ab"))})``."""
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    offset = 0
    for name in sorted(tensors):
        kind, shape, raw = tensors[name]
        assert raw.nbytes * 8 == math.prod(shape) * TYPE_BITS[kind], f"{name}: {kind} {shape}, {raw.nbytes}"
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [offset, offset + raw.nbytes]}
        offset += raw.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "xb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for name in sorted(tensors):
            file.write(tensors[name][2])
