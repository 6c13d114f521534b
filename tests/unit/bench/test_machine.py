"""Rates of the machine: plausible, and load of others told apart from our own."""

import os
import subprocess
import sys
import time

import torch

from openhearth.bench import LoadMeter, measure_bandwidth, measure_matmul
from openhearth.bench.machine import Rate, summarise


def test_summary_is_the_median_with_its_spread():
    assert summarise([3.0, 1.0, 2.0], [0.0, None, 0.4]) == Rate(2.0, 1.0, 3.0, 3, 0.4)
    assert summarise([1.0]).foreign_load is None


def test_bandwidth_is_that_of_memory_not_of_disks_or_caches():
    rate = measure_bandwidth(num_rounds=2)
    assert 2e8 < rate.low <= rate.median <= rate.high < 5e12


def test_matmul_rate_counts_two_operations_per_product():
    rate = measure_matmul(torch.float32, num_rounds=2)
    x, weight = torch.ones(512, 2048), torch.ones(2048, 2048)
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        torch.nn.functional.linear(x, weight)
        seconds.append(time.perf_counter() - started)
    assert rate.high > 0.2 * (2 * 512 * 2048 * 2048 / min(seconds))


class Canned(LoadMeter):
    """Seconds (all programs, this one) as if read from the system."""

    readings = iter(())

    def _read(self):
        return next(self.readings)


def test_own_processor_time_is_taken_off_that_of_all_programs():
    Canned.readings = iter([(10.0, 3.0), (10.0, 3.0), (10.0, 3.0), (14.0, 7.0), (10.0, 3.0), (99.0, 3.0),
                            None, (1.0, 1.0)])
    assert Canned().foreign_share() == 0.0, "nothing ran"
    assert Canned().foreign_share() == 0.0
    assert Canned().foreign_share() == 1.0
    assert Canned().foreign_share() is None


def test_work_of_another_process_is_seen():
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        meter = LoadMeter()
        time.sleep(0.5)
        share = meter.foreign_share()
    finally:
        other.kill()
        other.wait()
    assert share > 0.2 / (os.cpu_count() or 1)
