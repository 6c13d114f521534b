"""Tensors to safetensors files and back.

Does not: pair tensors with parameters; `loading.py` and `adapter_files.py` do.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from openhearth.errors import Unsupported
from openhearth.formats.mapping import map_tensor
from openhearth.formats.safetensors import read_safetensors
from openhearth.formats.writing import write_safetensors
from openhearth.kernels.dequant.reference import bytes_tensor

_TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64}
_NAMES = {dtype: name for name, dtype in _TYPES.items()}


def write_tensors(path: Path, tensors: Mapping[str, Tensor],
                  metadata: Mapping[str, str] | None = None) -> None:
    """Write a new file; equal tensors and metadata give equal bytes."""
    kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_safetensors(path, {name: (_NAMES[tensor.dtype], tuple(tensor.shape),
                                    memoryview(tensor.reshape(-1).view(torch.uint8).numpy()))
                             for name, tensor in kept.items()}, metadata)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of a file, copied, and its metadata.

    Raises: ModelNotFound, BadFile, Unsupported for other types than F32, F16, BF16 and I64.
    """
    file = read_safetensors(path)
    tensors = {}
    for name, entry in file.tensors.items():
        if entry.type not in _TYPES:
            raise Unsupported(f"tensor `{name}` of `{path.name}` is stored as {entry.type}",
                              why=f"expected {', '.join(_TYPES)}")
        tensor = torch.empty(entry.shape, dtype=_TYPES[entry.type])
        tensor.reshape(-1).view(torch.uint8).copy_(bytes_tensor(map_tensor(entry)))
        tensors[name] = tensor
    return tensors, dict(file.metadata)
