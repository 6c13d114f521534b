"""What a model that does not fit into memory will cost, said before it is loaded (guarantee G9)."""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from openhearth.formats.ggml_types import BLOCK_TYPES
from openhearth.formats.records import Checkpoint, TensorEntry
from openhearth.spec import ModelSpec, WeightChoice, packed_format
from openhearth.units import format_bytes, format_seconds

_PROBE_BYTES = 64 << 20
_PIECE_BYTES = 4 << 20
_PACKED_SHAPE = (2048, 4096)
_ROWS_AT_ONCE = 512
_NUM_PACKINGS = 3


def describe_streaming(weights: WeightChoice, spec: ModelSpec, checkpoint: Checkpoint) -> str:
    """Return the sentence that says what stays in memory and how long the rest takes at every step.

    A step reads the share of the weights that takes part in it, as far as it does not stay; with experts that
    is the share of a single token. Reads some megabytes of the file and packs a small matrix to time them.
    """
    typical = typical_tensor(checkpoint)
    packing = pack_rate(typical.type, packed_format(typical.type, typical.name, typical.shape, weights.form))
    cost = cost_of_step(weights, spec, read_rate(typical.path), packing)
    kept = format_bytes(weights.resident_bytes)
    return (f"{format_bytes(weights.num_bytes)} of weights do not fit: {kept} stay in memory, about "
            f"{format_bytes(cost.num_bytes)} are read from the file for every token, at "
            f"{format_bytes(cost.read_rate)}/s, and packed, at {format_bytes(cost.pack_rate)}/s: together "
            f"{format_seconds(cost.seconds)} a token")


def describe_quantising(weights: WeightChoice, checkpoint: Checkpoint) -> str:
    """Return the sentence that says why weights are quantised while they load, and how long that takes.

    Probes as `describe_streaming`: every byte of the file is read once, every matrix quantised and packed.
    """
    typical = typical_tensor(checkpoint)
    stored_bytes = sum(entry.num_bytes for entry in checkpoint.tensors.values())
    rate = read_rate(typical.path)
    packing = pack_rate(typical.type, packed_format(typical.type, typical.name, typical.shape, weights.form))
    seconds = stored_bytes / rate + weights.num_bytes / packing
    return (f"weights become {weights.form} while they load: {weights.reason}; reading "
            f"{format_bytes(stored_bytes)} at {format_bytes(rate)}/s and quantising take about "
            f"{format_seconds(seconds)}")


def typical_tensor(checkpoint: Checkpoint) -> TensorEntry:
    """Return the largest tensor of the type that has most of a file's bytes."""
    num_bytes: Counter[str] = Counter()
    for entry in checkpoint.tensors.values():
        num_bytes[entry.type] += entry.num_bytes
    [(most, _)] = num_bytes.most_common(1)
    return max((entry for entry in checkpoint.tensors.values() if entry.type == most),
               key=lambda entry: entry.num_bytes)


@dataclass(frozen=True)
class StepCost:
    """What a step does with weights that are not in memory. Rates are bytes of packed weights per second.

    Example: ``StepCost(num_bytes=10**9, read_rate=5e8, pack_rate=1e9).seconds == 3.0``.
    """

    num_bytes: float
    read_rate: float
    pack_rate: float

    @property
    def seconds(self) -> float:
        """Reading, then packing: the threads that pack wait for the pages that they read."""
        return self.num_bytes / self.read_rate + self.num_bytes / self.pack_rate


def cost_of_step(weights: WeightChoice, spec: ModelSpec, read_rate: float, pack_rate: float) -> StepCost:
    """Return what a step of one token costs, beside the sentence of `describe_streaming`."""
    away = weights.num_bytes - weights.resident_bytes
    return StepCost(away * spec.num_active_parameters / spec.num_parameters, read_rate, pack_rate)


def pack_rate(stored: str, format: str) -> float:
    """Return the packed bytes per second of a matrix in memory that the file has as `stored`.

    format: that it is packed in, as `spec.packed_format` says. The fastest of some packings; one of FP8 is
    taken for one of bfloat16.
    """
    import torch

    from openhearth.kernels.dequant import dequantize_into
    from openhearth.kernels.linear.packed import (
        BLOCK_FORMATS,
        RowParts,
        Rows,
        block_rows,
        number_rows,
        quantize,
    )
    from openhearth.kernels.linear.streamed import Budget, StreamedWeight

    stored = stored if stored in BLOCK_TYPES else "BF16"
    block, number = BLOCK_TYPES[stored], torch.float32 if format == "F32" else torch.bfloat16
    num_rows, num_inputs = _PACKED_SHAPE
    raw_NB = torch.zeros(num_rows, num_inputs // block.num_elements * block.num_bytes, dtype=torch.uint8)
    plain = {"F32": torch.float32, "BF16": torch.bfloat16}.get(stored)

    def make(start: int, count: int) -> Rows:
        part = raw_NB[start:start + count]
        if format in BLOCK_FORMATS and stored == format:
            return block_rows(part.flatten(), format, (count, num_inputs))
        if plain is not None and format in (stored, *BLOCK_FORMATS):
            numbers = part.view(plain)
        else:
            kept = torch.float32 if format in BLOCK_FORMATS else number
            numbers = dequantize_into(part.flatten(), stored, torch.empty(count, num_inputs, dtype=kept))
        return quantize(numbers, format) if format in BLOCK_FORMATS else number_rows(numbers)

    weight = StreamedWeight(RowParts(make, _PACKED_SHAPE, format, _ROWS_AT_ONCE), None, Budget(0))
    seconds = []
    for _ in range(1 + _NUM_PACKINGS):  # the first one gets its memory from the system
        started = time.perf_counter()
        weight.packed  # noqa: B018
        seconds.append(time.perf_counter() - started)
    return weight.num_bytes / min(seconds[1:])


def read_rate(path: Path) -> float:
    """Return the bytes per second that reading a file gives, from its middle, past the system's cache."""
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        start = max(0, size // 2 - _PROBE_BYTES)
        if hasattr(os, "posix_fadvise"):
            with contextlib.suppress(OSError):
                os.posix_fadvise(file.fileno(), start, _PROBE_BYTES, os.POSIX_FADV_DONTNEED)
        file.seek(start)
        done, started = 0, time.perf_counter()
        while done < _PROBE_BYTES and (piece := file.read(_PIECE_BYTES)):
            done += len(piece)
        return max(1, done) / (time.perf_counter() - started)
