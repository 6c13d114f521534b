"""Blocks for weights: aligned, disjoint, returned when unused."""

import gc
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from openhearth.kernels.memory import take_bytes


def test_pieces_are_aligned_zeroed_and_disjoint():
    pieces = [take_bytes(size) for size in (1, 64, 65, 100_000, 20 << 20, 20 << 20, 3)]
    for number, piece in enumerate(pieces):
        assert piece.data_ptr() % 64 == 0
        assert not piece.any()
        piece.fill_(number + 1)
    for number, piece in enumerate(pieces):
        assert (piece == number + 1).all()
    assert take_bytes(0).shape == (0,)


def test_a_large_block_returns_to_the_system_with_its_tensor():
    def resident_mb():
        return int(re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text()).group(1)) / 1024

    before = resident_mb()
    tensor = take_bytes(64 << 20).fill_(1)
    view = tensor[10:20].view(torch.int8)
    del tensor
    gc.collect()
    assert resident_mb() > before + 48
    assert view.sum() == 10
    del view
    gc.collect()
    assert resident_mb() < before + 16


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told to")
def test_what_is_freed_is_kept_for_the_next_one():
    code = ("import resource, torch\n"
            "from openhearth.kernels.memory import keep_freed\n"
            "keep_freed()\n"
            "faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
            "torch.ones(48 << 20, dtype=torch.uint8)\n"
            "before = faults()\n"
            "torch.ones(48 << 20, dtype=torch.uint8)\n"
            "print(faults() - before)\n")
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(found.stdout) < 1000  # of 12288 pages
