"""Measure linear layers, ours and torch's, in alternation: `python bench/linear.py --threads 2`.

--format: plain weights, or blocks of a GGUF file (random ones); torch multiplies with bfloat16 then.
T = 1: every weight of a set larger than the caches is read once per pass, so GB/s is that of memory.
T = 512: the weights are hot. Each line is the best of all rounds; `ratio` is the median over the rounds of
torch's time over ours, measured back to back.
"""

# T rows, K inputs, N outputs

from __future__ import annotations

import argparse
import math
import statistics
import time

import torch
from torch.nn import functional

from openhearth.formats.ggml_types import BLOCK_TYPES
from openhearth.kernels.linear.native import linear
from openhearth.kernels.linear.packed import BLOCK_FORMATS, PackedWeight, block_rows
from openhearth.kernels.select import chosen, missing, set_num_threads

SHAPES = ((576, 576), (576, 1536), (1536, 576), (49152, 576))  # N, K of SmolLM2-135M


def pack(format: str, num_outputs: int, num_inputs: int) -> PackedWeight:
    """A random weight; blocks have every pattern of quants and scales of 2^-7 to 2^-5."""
    if format not in BLOCK_FORMATS:
        dtype = torch.float32 if format == "F32" else torch.bfloat16
        return PackedWeight(torch.randn(num_outputs, num_inputs).to(dtype))
    block = BLOCK_TYPES[format]
    num_blocks = num_outputs * num_inputs // block.num_elements
    blocks = torch.randint(0, 256, (num_blocks, block.num_bytes), dtype=torch.uint8)
    blocks[:, :4] = torch.randint(0x2000, 0x2800, (num_blocks, 2), dtype=torch.int16).view(torch.uint8)
    return PackedWeight(block_rows(blocks.view(-1), format, (num_outputs, num_inputs)))


def pass_s(call, weights) -> float:
    """Seconds per weight in one pass over the weights: the 20th percentile, free of most foreign load."""
    seconds = []
    for weight in weights:
        started = time.perf_counter()
        call(weight)
        seconds.append(time.perf_counter() - started)
    return sorted(seconds)[len(seconds) // 5]


def compare(ours, theirs, packed, plain, rounds: int, passes: int) -> tuple[float, float, float]:
    """Best seconds of ours, of theirs, and the median ratio of the two within a round."""
    best_ours = best_theirs = math.inf
    ratios = []
    for _ in range(rounds):
        ours_s = min(pass_s(ours, packed) for _ in range(passes))
        theirs_s = min(pass_s(theirs, plain) for _ in range(passes))
        best_ours, best_theirs = min(best_ours, ours_s), min(best_theirs, theirs_s)
        ratios.append(theirs_s / ours_s)
    return best_ours, best_theirs, statistics.median(ratios)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 512])
    parser.add_argument("--isa", default=chosen().isa, choices=["amx", "avx512", "avx2"])
    parser.add_argument("--format", default="BF16", choices=["BF16", "F32", *BLOCK_FORMATS])
    parser.add_argument("--megabytes", type=int, default=768, help="of weights read in one pass at T = 1")
    options = parser.parse_args()
    if missing(options.isa):
        parser.error(missing(options.isa))
    torch.set_num_threads(options.threads)
    set_num_threads(options.threads)
    dtype = torch.float32 if options.format == "F32" else torch.bfloat16
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {options.threads} threads, {options.isa}, {options.format}")
    for num_rows in options.rows:
        for num_outputs, num_inputs in SHAPES:
            if options.format == "Q4_K":
                num_inputs = -(-num_inputs // 256) * 256
            num_bytes = pack(options.format, num_outputs, num_inputs).packed.nbytes
            copies = max(1, options.megabytes * 2**20 // num_bytes) if num_rows < 16 else 1
            plain_copies = max(1, min(copies, options.megabytes * 2**20 // (num_outputs * num_inputs * 2)))
            plain = [torch.randn(num_outputs, num_inputs).to(dtype)]
            plain += [plain[0].clone() for _ in range(plain_copies - 1)]
            packed = [pack(options.format, num_outputs, num_inputs) for _ in range(copies)]
            x_TK = torch.randn(num_rows, num_inputs).to(dtype)
            with torch.inference_mode():
                ours_s, torch_s, ratio = compare(
                    lambda weight, x_TK=x_TK: linear(x_TK, weight, isa=options.isa),
                    lambda weight, x_TK=x_TK: functional.linear(x_TK, weight),
                    packed, plain, options.rounds, passes=3)
            if num_rows < 16:
                unit, amount = "GB/s", num_bytes / 1e9
            else:
                unit, amount = "TFLOP/s", 2 * num_rows * num_outputs * num_inputs / 1e12
            print(f"T={num_rows:<4} {num_outputs:>5} x {num_inputs:<4}  ours {amount / ours_s:7.2f} {unit}"
                  f"  torch {amount / torch_s:7.2f} {unit}  ratio {ratio:5.2f}  ({ours_s * 1e6:.1f} us)",
                  flush=True)


if __name__ == "__main__":
    main()
