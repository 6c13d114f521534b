"""Measure a training step: `python bench/sft.py MODEL --weights lora --threads 2`.

Random token ids, every one but the first trained; the best and the median of several steps. MFU counts
4 operations per weight and token for LoRA (forward, gradients of activations), 6 for full fine-tuning, plus
attention, over torch's own matrix rate measured in the same process. `--profile` prints where the time goes.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from openhearth import bench, hardware, hub
from openhearth.config import Config
from openhearth.formats import open_checkpoint
from openhearth.kernels.select import chosen, set_num_threads
from openhearth.models import load_model
from openhearth.spec import read_spec
from openhearth.tune.data.records import Sample
from openhearth.tune.loops.sft import SftLoop
from openhearth.tune.optimizer import AdamSettings, Optimizer
from openhearth.tune.weights import adapter_parameters, attach_fresh, recompute_layers


def build_loop(options: argparse.Namespace) -> SftLoop:
    """Return a loop over random samples on the model that was asked for."""
    checkpoint = open_checkpoint(hub.pull(options.model, Config.from_env()).path)
    spec, is_full = read_spec(checkpoint), options.weights == "full"
    model = load_model(checkpoint, spec, dtype=getattr(torch, options.dtype), is_trainable=is_full)
    if is_full:
        parameters, slot = dict(model.named_parameters()), None
    else:
        layers = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
        adapter = attach_fresh(model, rank=options.rank, scale=2.0, layers=layers, seed=0)
        parameters, slot = adapter_parameters(adapter), adapter.slot
    if options.recompute:
        recompute_layers(model)
    generator = torch.Generator().manual_seed(0)
    is_trained = (False, *[True] * (options.length - 1))
    samples = [Sample(tuple(torch.randint(spec.vocab_size, (options.length,), generator=generator).tolist()),
                      is_trained, "random", number) for number in range(options.batch)]
    return SftLoop(model, Optimizer(parameters, AdamSettings()), samples, seed=0, batch_size=options.batch,
                   pack_tokens=options.pack_tokens, adapter_slot=slot)


def one_step(loop: SftLoop) -> tuple[float, int, int]:
    """Do a step; return its seconds, tokens and operations."""
    started = time.perf_counter()
    work = loop.backward(0)
    loop.optimizer.step(1e-6, loop.optimizer.gradient_norm())
    return time.perf_counter() - started, work.num_tokens, work.flops


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="smollm2")
    parser.add_argument("--weights", default="lora", choices=["lora", "full"])
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--pack-tokens", type=int, default=1024)
    parser.add_argument("--recompute", action="store_true")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    set_num_threads(options.threads)
    peak = bench.measure_matmul(getattr(torch, options.dtype)).median
    loop = build_loop(options)
    print(f"torch {torch.__version__}, {options.threads} threads, {chosen().isa}, {options.dtype}, "
          f"matrix rate {peak / 1e12:.2f} TFLOP/s")
    if options.profile:
        with torch.profiler.profile(with_stack=False) as profile:
            one_step(loop)
        print(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=28,
                                           max_name_column_width=60))
    steps = [one_step(loop) for _ in range(options.steps + 1)][1:]
    best = min(seconds for seconds, _, _ in steps)
    median = statistics.median(seconds for seconds, _, _ in steps)
    num_tokens, flops = steps[0][1:]
    print(f"{options.weights} {options.batch} x {options.length}: best {num_tokens / best:.0f} tokens/s, "
          f"median {num_tokens / median:.0f}; MFU {flops / best / peak:.1%}; "
          f"peak memory {hardware.peak_memory_bytes() / 2**30:.2f} GiB")


if __name__ == "__main__":
    main()
