"""Measure attention, ours and torch's, in alternation: `python bench/attention.py --threads 2`.

Each line is one layer of SmolLM2-135M (9 heads on 3 kv heads of 64 numbers) over a paged cache, rotary
embedding and cache write included; torch's scaled_dot_product_attention gets contiguous keys and values of
whole sequences, turned already, and neither writes nor gathers. Decode goes through the caches of 30 layers
in turn, so that GB/s is that of memory wherever they exceed the processor's own. ms is the best per layer
of all rounds; `ratio` is the median over the rounds of torch's time over ours, measured back to back.
"""

# T packed tokens, S sequences, L tokens of one sequence, H heads, K kv heads, E head size

from __future__ import annotations

import argparse
import math
import statistics
import time

import torch
from torch.nn.functional import scaled_dot_product_attention

from openhearth.kernels.attention import native
from openhearth.kernels.attention.inputs import AttnInput, KvCache
from openhearth.kernels.rope import compute_rotation
from openhearth.kernels.rope.reference import inverse_frequencies
from openhearth.kernels.select import chosen, missing, set_num_threads
from openhearth.spec import RopeSpec

H, K, E = 9, 3, 64
LAYERS = 30
PAGE = 16
CASES = {"prefill_512": (1, 512, 512), "prefill_1900": (1, 1900, 1900), "decode_150": (1, 1, 150),
         "decode_1900": (1, 1, 1900), "batch_64x192": (64, 1, 192)}
"""name: sequences, new tokens of each, tokens of each after them"""


class Case:
    """One workload over the caches of several layers, ready to run by either side."""

    def __init__(self, num_sequences: int, num_new: int, length: int, dtype: torch.dtype, isa: str) -> None:
        self.isa, self.layers = isa, LAYERS if num_new == 1 else 2
        num_tokens, pages = num_sequences * num_new, -(-length // PAGE)
        generator = torch.Generator().manual_seed(0)
        table_SP = torch.randperm(num_sequences * pages, generator=generator).view(num_sequences, pages)
        positions_L = torch.arange(length - num_new, length)
        slots_T = (table_SP[:, positions_L // PAGE] * PAGE + positions_L % PAGE).flatten()
        shape = (num_sequences * pages, PAGE, K, E)
        keys, values = ([torch.randn(shape, generator=generator).to(dtype) for _ in range(self.layers)]
                        for _ in range(2))
        starts = tuple(range(0, num_tokens + 1, num_new))
        attn = AttnInput(starts, (length,) * num_sequences, KvCache(tuple(keys), tuple(values)), slots_T,
                         table_SP)
        self.plan = native.plan_attention(attn)
        self.rows = [torch.randn(num_tokens, heads * E, generator=generator).to(dtype) for heads in (H, K, K)]
        rope = RopeSpec()
        positions_T = positions_L.repeat(num_sequences)
        self.rotation = compute_rotation(rope, inverse_frequencies(rope, E), positions_T)
        self.q_SHLE = torch.randn(num_sequences, H, num_new, E).to(dtype)
        self.k_SKLE, self.v_SKLE = ([one.view(-1, K, E)[:num_sequences * length]
                                     .view(num_sequences, length, K, E).transpose(1, 2).contiguous()
                                     for one in part] for part in (keys, values))
        self.is_causal = num_new > 1

    def run_ours(self) -> None:
        for layer in range(self.layers):
            native.attend(self.plan, layer, *self.rows, self.rotation, isa=self.isa)

    def run_torch(self) -> None:
        for k_SKLE, v_SKLE in zip(self.k_SKLE, self.v_SKLE, strict=True):
            scaled_dot_product_attention(self.q_SHLE, k_SKLE, v_SKLE, is_causal=self.is_causal,
                                         enable_gqa=True)


def seconds(call) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--isa", default=chosen().isa, choices=["amx", "avx512", "avx2"])
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--only", choices=sorted(CASES))
    options = parser.parse_args()
    if missing(options.isa):
        parser.error(missing(options.isa))
    torch.set_num_threads(options.threads)
    set_num_threads(options.threads)
    dtype = getattr(torch, options.dtype)
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {options.threads} threads, {options.isa}, {options.dtype}")
    for name, (num_sequences, num_new, length) in CASES.items():
        if options.only not in (None, name):
            continue
        case = Case(num_sequences, num_new, length, dtype, options.isa)
        best_ours = best_torch = math.inf
        ratios = []
        with torch.inference_mode():
            for _ in range(options.rounds):
                ours_s, torch_s = seconds(case.run_ours), seconds(case.run_torch)
                best_ours, best_torch = min(best_ours, ours_s), min(best_torch, torch_s)
                ratios.append(torch_s / ours_s)
        ours_s, torch_s = best_ours / case.layers, best_torch / case.layers
        seen = sum(range(length - num_new + 1, length + 1)) * num_sequences  # (query, key) pairs of a head
        flops, num_bytes = 4 * seen * H * E, 2 * num_sequences * length * K * E * dtype.itemsize
        print(f"{name:<13} ours {ours_s * 1e3:8.3f} ms {flops / ours_s / 1e9:7.0f} GFLOP/s "
              f"{num_bytes / ours_s / 1e9:6.1f} GB/s  torch {torch_s * 1e3:8.3f} ms  "
              f"ratio {statistics.median(ratios):5.2f}", flush=True)


if __name__ == "__main__":
    main()
