"""Rates of the machine: plausible, and load of others told apart from our own."""

import subprocess
import sys
import time

import pytest
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


def test_own_work_is_not_foreign_and_that_of_others_is():
    meter = LoadMeter()
    until = time.perf_counter() + 0.4
    while time.perf_counter() < until:
        pass
    alone = meter.foreign_share()
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(0.2)
        meter = LoadMeter()
        time.sleep(0.5)
        beside = meter.foreign_share()
    finally:
        other.kill()
        other.wait()
    if alone is None:
        pytest.fail("no /proc/stat")
    assert beside > 0.2 / (torch.get_num_threads() or 1) or beside > alone
