"""What this machine reaches: memory bandwidth and matrix-multiply rate, measured with torch.

These are the yardsticks of `throughput.py`: a decode step reads every weight once, a prefill
multiplies matrices. Both are best cases of plain torch, not of the chip's data sheet.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from openhearth import hardware

_BUFFER_BYTES = 2**30
_SHAPES = ((512, 576, 1536), (512, 2048, 2048), (1024, 4096, 4096))
"""(rows, in, out): a small model's layer, a middle one, one that fills the caches."""
_ROW_WIDTH = 4096


@dataclass(frozen=True)
class Rate:
    """A rate per second over rounds: median, slowest, fastest. Example: ``Rate(41.0, 39.5, 41.2, 3)``.

    foreign_load: the largest share of the machine's cores that other programs used in a round; None
    where the system does not tell.
    """

    median: float
    low: float
    high: float
    num_rounds: int
    foreign_load: float | None = None


def summarise(rates: list[float], foreign_loads: list[float | None] = ()) -> Rate:
    """Return median and spread of one rate per round."""
    known = [load for load in foreign_loads if load is not None]
    return Rate(statistics.median(rates), min(rates), max(rates), len(rates), max(known, default=None))


def measure_bandwidth(*, num_rounds: int = 5) -> Rate:
    """Return bytes per second read from memory, with torch's current number of threads.

    The buffer is 1 GiB or four times the last cache, and at most a quarter of the free memory. Of
    two ways of reading it once (matrix times vector, dot product) the faster counts.
    """
    wanted = max(_BUFFER_BYTES, 4 * hardware.read_cpu().last_cache_bytes)
    num_bytes = min(wanted, hardware.read_memory().available_bytes // 4)
    num_rows = max(1, num_bytes // 4 // _ROW_WIDTH)
    matrix = torch.empty(num_rows, _ROW_WIDTH).fill_(1.0)
    flat, vector = matrix.view(-1), torch.ones(_ROW_WIDTH)
    half = flat.numel() // 2
    read_bytes = matrix.numel() * 4
    return max((_rate_of(reading, read_bytes, num_rounds) for reading in (
        lambda: torch.mv(matrix, vector), lambda: torch.dot(flat[:half], flat[half:2 * half]))),
        key=lambda rate: rate.median)


def measure_matmul(dtype: torch.dtype, *, num_rounds: int = 5) -> Rate:
    """Return floating-point operations per second of `linear`, best of three shapes.

    A product of [m, k] and [k, n] counts 2 m k n operations.
    """
    best = None
    for rows, num_in, num_out in _SHAPES:
        x, weight = torch.ones(rows, num_in, dtype=dtype), torch.ones(num_out, num_in, dtype=dtype)
        rate = _rate_of(lambda x=x, weight=weight: F.linear(x, weight), 2 * rows * num_in * num_out,
                        num_rounds)
        best = rate if best is None or rate.median > best.median else best
    return best


def _rate_of(work: Callable[[], object], amount: float, num_rounds: int) -> Rate:
    work()
    rates = []
    for _ in range(num_rounds):
        started = time.perf_counter()
        work()
        rates.append(amount / (time.perf_counter() - started))
    return summarise(rates)


class LoadMeter:
    """Share of the machine's cores that other programs take while something is measured.

    Linux only: the busy ticks of /proc/stat, minus the processor time of this process. Time that a
    hypervisor gave to others counts. Example: ``meter = LoadMeter(); work(); meter.foreign_share()``.
    """

    def __init__(self) -> None:
        self._start = self._read()
        self._started = time.perf_counter()

    def foreign_share(self, others_s: float = 0.0) -> float | None:
        """Return 0.0 for an idle neighbourhood up to 1.0 for all cores; None where unknown.

        others_s: processor seconds of processes that belong to what is measured.
        """
        end, wall_s = self._read(), time.perf_counter() - self._started
        if self._start is None or end is None or wall_s <= 0:
            return None
        foreign_s = (end[0] - self._start[0]) - (end[1] - self._start[1]) - others_s
        return min(1.0, max(0.0, foreign_s / wall_s / (os.cpu_count() or 1)))

    @staticmethod
    def _read() -> tuple[float, float] | None:
        try:
            first = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0].split()[1:]
        except (OSError, IndexError):
            return None
        # Columns of proc_stat(5): user nice system idle iowait irq softirq steal; guests are in user.
        ticks = [int(value) for value in first[:8]]
        busy = sum(ticks) - sum(ticks[3:5])
        own = os.times()
        return busy / os.sysconf("SC_CLK_TCK"), own.user + own.system
