"""Measure draws and log-probabilities, ours and torch's, in alternation: `python bench/vocab.py --threads 2`.

Logits are normal with a standard deviation of 3, which puts about as many tokens above a share of one
percent as a language model does. torch's side is what one would write with it: argmax, softmax and
multinomial, with topk or sort before them, and the gather of a log-softmax; no logprob is computed for its
draws, ours gives one for each. Each line is the best of all rounds; `ratio` is the median over the rounds of
torch's time over ours, measured back to back.
"""

# R rows, V vocabulary

from __future__ import annotations

import argparse
import functools
import math
import statistics
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from openhearth.engine.records import Sampling
from openhearth.kernels.logprob import native as logprob
from openhearth.kernels.sampling import Row
from openhearth.kernels.sampling.native import draw
from openhearth.kernels.select import chosen, missing, set_num_threads


def torch_greedy(logits_RV: Tensor) -> Tensor:
    return logits_RV.argmax(-1)


def torch_sample(logits_RV: Tensor) -> Tensor:
    return torch.multinomial(logits_RV.softmax(-1), 1)


def torch_top_k(logits_RV: Tensor) -> Tensor:
    values_RK, token_ids_RK = logits_RV.topk(40)
    return token_ids_RK.gather(1, torch.multinomial(values_RK.softmax(-1), 1))


def torch_top_p(logits_RV: Tensor) -> Tensor:
    sorted_RV, token_ids_RV = logits_RV.sort(descending=True)
    probs_RV = sorted_RV.softmax(-1)
    probs_RV[probs_RV.cumsum(-1) - probs_RV >= 0.9] = 0
    return token_ids_RV.gather(1, torch.multinomial(probs_RV, 1))


def torch_logprobs(targets_R: Tensor, logits_RV: Tensor) -> Tensor:
    return logits_RV.log_softmax(-1).gather(1, targets_R[:, None])


def works(num_rows: int, num_tokens: int, isa: str) -> Iterator[tuple[str, Callable, Callable]]:
    """Give a name, our call and torch's, each of the logits alone."""
    for name, theirs, settings in (("greedy", torch_greedy, {"temperature": 0}), ("sample", torch_sample, {}),
                                   ("top-p 0.9", torch_top_p, {"top_p": 0.9}),
                                   ("top-k 40", torch_top_k, {"top_k": 40})):
        rows = [Row(Sampling(**settings, seed=row)) for row in range(num_rows)]
        yield name, functools.partial(draw, rows=rows, isa=isa), theirs
    targets_R = torch.arange(num_rows) * 37 % num_tokens
    yield ("logprobs", lambda logits_RV: logprob.row_logprobs(logits_RV, targets_R, 1.0, isa=isa),
           functools.partial(torch_logprobs, targets_R))


def best_s(call: Callable, logits_RV: Tensor, passes: int) -> float:
    """Seconds of the fastest of some calls."""
    seconds = []
    for _ in range(passes):
        started = time.perf_counter()
        call(logits_RV)
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--vocabulary", type=int, default=49152)
    parser.add_argument("--isa", default=chosen().isa, choices=["amx", "avx512", "avx2"])
    options = parser.parse_args()
    if missing(options.isa):
        parser.error(missing(options.isa))
    set_num_threads(options.threads)
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {options.threads} threads, {options.isa}, V {options.vocabulary}")
    for num_rows in options.rows:
        logits_RV = torch.randn(num_rows, options.vocabulary) * 3
        passes = max(5, 200 // num_rows)
        for name, ours, theirs in works(num_rows, options.vocabulary, options.isa):
            best_ours = best_theirs = math.inf
            ratios = []
            with torch.inference_mode():
                for _ in range(options.rounds):
                    ours_s = best_s(ours, logits_RV, passes)
                    theirs_s = best_s(theirs, logits_RV, max(3, passes // 10))
                    best_ours, best_theirs = min(best_ours, ours_s), min(best_theirs, theirs_s)
                    ratios.append(theirs_s / ours_s)
            print(f"R={num_rows:<3} {name:<10} ours {best_ours / num_rows * 1e6:8.2f} us per row"
                  f"  torch {best_theirs / num_rows * 1e6:9.2f}  ratio {statistics.median(ratios):6.1f}",
                  flush=True)


if __name__ == "__main__":
    main()
