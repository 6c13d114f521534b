"""Blocks for weights: aligned, disjoint, returned when unused."""

import gc
import re
from pathlib import Path

import torch

from openhearth.kernels.freed import give_back
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

    gc.collect()
    give_back()  # what other tests left must not go while this one counts
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
