"""The cache's size, and memory that is not touched before it is needed."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.decoder import tiny_spec

from openhearth.engine.memory import PagedCache, choose_num_pages, page_bytes
from openhearth.engine.settings import EngineSettings
from openhearth.errors import NotEnoughMemory, UsageError

SMOLLM2 = tiny_spec(num_layers=30, num_kv_heads=3, head_dim=64, max_position=8192)
LLAMA_8B = tiny_spec(num_layers=32, num_kv_heads=8, head_dim=128, max_position=131072)
GIB = 2**30


def test_a_page_has_the_published_bytes_per_token():
    # 131,072 bytes per token of Llama 3 8B in bfloat16.
    assert page_bytes(LLAMA_8B, 16, torch.bfloat16) == 16 * 131072
    assert page_bytes(SMOLLM2, 1, torch.float32) == 46080
    assert page_bytes(SMOLLM2, 16, torch.int8) == 16 * SMOLLM2.kv_bytes_per_token(1 + 2 / 32) == 16 * 12240


def pages(spec, available, dtype=torch.bfloat16, **settings):
    return choose_num_pages(spec, EngineSettings(**settings), dtype, available)


def test_with_memory_to_spare_the_cache_holds_two_contexts_or_16384_tokens():
    assert pages(SMOLLM2, 64 * GIB) * 16 == 2 * 8192
    assert pages(LLAMA_8B, 64 * GIB) * 16 == 2 * 131072
    assert pages(LLAMA_8B, 64 * GIB, context_length=2048) * 16 == 16384


def test_with_little_memory_the_cache_takes_four_fifths_of_it_less_a_reserve():
    found = pages(LLAMA_8B, 4 * GIB)
    assert found == (4 * GIB * 4 // 5 - 256 * 2**20) // (16 * 131072)


def test_a_set_size_is_followed_to_the_page():
    assert pages(SMOLLM2, 0, cache_bytes=100 * 16 * 23040 + 5) == 100


@pytest.mark.parametrize("available", [0, 300 * 2**20])
def test_when_the_smallest_cache_does_not_fit_the_numbers_are_named(available):
    with pytest.raises(NotEnoughMemory, match=r"256 tokens needs 32\.0 MiB") as caught:
        pages(LLAMA_8B, available)
    assert "are free" in caught.value.why


def test_a_set_size_that_is_too_small_says_what_would_do():
    with pytest.raises(NotEnoughMemory) as caught:
        pages(SMOLLM2, 64 * GIB, cache_bytes=1000)
    assert caught.value.hint == f"EngineSettings(cache_bytes={256 * 23040})"
    assert pages(SMOLLM2, 64 * GIB, cache_bytes=256 * 23040) == 16


def test_a_context_beyond_the_models_is_refused():
    with pytest.raises(UsageError, match="8193"):
        pages(SMOLLM2, 64 * GIB, context_length=8193)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_cache_begins_as_zeros_and_copies_pages_in_every_layer_in_order(dtype):
    cache = PagedCache(tiny_spec(), 4, 2, dtype, torch.device("cpu"))
    assert cache.kv.page_size == 2 and len(cache.kv.keys) == 2
    assert all(not one.any() and one.shape == (4, 2, 2, 8) and one.dtype == dtype
               for one in (*cache.kv.keys, *cache.kv.values))
    for layer in range(2):
        cache.kv.keys[layer][1], cache.kv.values[layer][1] = 10 + layer, 20 + layer
    cache.copy_pages([(1, 2), (2, 3)])
    for layer in range(2):
        assert cache.kv.keys[layer].float().mean((1, 2, 3)).tolist() == [0] + [10 + layer] * 3
        assert cache.kv.values[layer].float().mean((1, 2, 3)).tolist() == [0] + [20 + layer] * 3


def test_a_large_cache_takes_no_memory_before_it_is_written():
    code = """
import torch
from support.decoder import tiny_spec
from openhearth.engine.memory import PagedCache
from openhearth import hardware
before = hardware.peak_memory_bytes()
cache = PagedCache(tiny_spec(num_layers=8), 2**16, 16, torch.float32, torch.device("cpu"))
assert sum(one.numel() * 4 for one in cache.kv.keys) == 2**29
for one in (*cache.kv.keys, *cache.kv.values):
    one[7] = 1.0
grown = hardware.peak_memory_bytes() - before
assert grown < 2**23, grown
"""
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          env={"PYTHONPATH": f"{root / 'src'}:{root / 'tests'}", "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
