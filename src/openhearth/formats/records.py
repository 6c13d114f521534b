"""What the bounded readers hand on: where each tensor's bytes lie, already checked against the file.

Does not: read tensor bytes, import torch, or know any architecture.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor inside a weight file.

    type: GGML or safetensors type name in upper case ("F32", "BF16", "Q4_1", ...). shape: torch
    order, outermost first. offset: absolute, in bytes. Example:
    ``TensorEntry("token_embd.weight", "Q4_1", (49152, 576), Path("m.gguf"), 1767616, 17694720)``.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    path: Path
    offset: int
    num_bytes: int

    def part(self, index: int) -> TensorEntry:
        """Return one of the tensors that a stack of them along the first axis holds."""
        size = self.num_bytes // self.shape[0]
        return replace(self, shape=self.shape[1:], offset=self.offset + index * size, num_bytes=size)

    def rows(self, start: int, count: int) -> TensorEntry:
        """Return so many entries along the first axis, from start on, as a tensor of their own."""
        size = self.num_bytes // self.shape[0]
        return replace(self, shape=(count, *self.shape[1:]), offset=self.offset + start * size,
                       num_bytes=count * size)


@dataclass(frozen=True)
class WeightFile:
    """The checked header of one weight file.

    metadata: GGUF key-values, or the `__metadata__` texts of a safetensors file. Example:
    ``read_gguf(path).metadata["general.architecture"] == "llama"``.
    """

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, TensorEntry]


@dataclass(frozen=True)
class Checkpoint:
    """A model on disk, headers read and checked, no weights read.

    path: the GGUF file or the folder. files: the weight files, sorted. metadata: GGUF key-values
    (empty for safetensors). config: `config.json` (empty for GGUF). Names of tensors are as in the
    file.
    """

    path: Path
    format: Literal["gguf", "safetensors"]
    files: tuple[Path, ...]
    metadata: Mapping[str, Any]
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorEntry]
