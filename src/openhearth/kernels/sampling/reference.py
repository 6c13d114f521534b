"""From logits to tokens in torch and numpy: one row per completion, every row as if it were alone.

Order: penalties and logit bias, token mask, temperature, top-k, top-p, min-p. What is kept is always
"every token at least as likely as the last one that counts", so tokens that tie with it are kept too
and no result depends on the order of equal numbers.

A token is drawn by the Gumbel-max trick on two levels (first a block of tokens by its mass, then a
token of that block), each as argmax(p / E) with exponential noise E: the exact distribution, with a
few hundred random numbers instead of one per vocabulary entry, and insensitive to rounding except
where two candidates nearly tie. Source: Maddison, Tarlow, Minka, "A* sampling" (arXiv 1411.0030),
section 2; p / E is the same race before the logarithm.

Does not: know requests, pages or stop conditions.
"""

# R rows, V vocabulary, B blocks of tokens, W tokens per block, K candidates

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from openhearth.kernels.sampling.inputs import Draw, Row, Settings, needs_counts
from openhearth.kernels.sampling.noise import uniforms
from openhearth.kernels.sampling.penalties import add_bias_, penalize_

_BLOCK = 256
_FIRST_CANDIDATES = 256


def draw(logits_RV: Tensor, rows: Sequence[Row]) -> list[Draw]:
    """Draw one token per row. logits_RV: float32, overwritten.

    Greedy rows take the most likely token, the lowest id among equals.
    """
    for logits_V, row in zip(logits_RV, rows, strict=True):
        _adjust_(logits_V, row)
    drawing = [place for place, row in enumerate(rows) if row.sampling.temperature > 0]
    if drawing:
        temperatures = [row.sampling.temperature or 1.0 for row in rows]
        if any(temperature != 1.0 for temperature in temperatures):
            logits_RV /= torch.tensor(temperatures, device=logits_RV.device)[:, None]
        for place in drawing:
            truncate_(logits_RV[place], rows[place].sampling)
    logprobs_RV = torch.log_softmax(logits_RV, dim=-1)
    if len(drawing) < len(rows):
        token_ids_R = _argmax(logits_RV)
    if drawing:
        raced = _race(_pick(logits_RV, drawing), [rows[place] for place in drawing])
        if len(drawing) < len(rows):
            token_ids_R[drawing] = raced
        else:
            token_ids_R = raced
    chosen_R = logprobs_RV.gather(1, token_ids_R[:, None])[:, 0]
    return [Draw(token_id, logprob, top_logprobs(logprobs_V, row.sampling.num_logprobs))
            for token_id, logprob, logprobs_V, row
            in zip(token_ids_R.tolist(), chosen_R.tolist(), logprobs_RV, rows, strict=True)]


def truncate_(scaled_V: Tensor, sampling: Settings) -> None:
    """Set what top-k, top-p and min-p exclude to -inf, in place; each sees what the one before left.

    scaled_V: float32, logits after temperature. top_p keeps the fewest tokens, likeliest first, whose
    mass reaches it (arXiv 1904.09751, section 3.1); min_p those with at least min_p times the
    largest probability (arXiv 2407.01082, section 3).
    """
    if 0 < sampling.top_k < len(scaled_V) or sampling.top_p < 1 or sampling.min_p > 0:
        least = np.float32(_least_kept(scaled_V.cpu().numpy(), sampling))
        functional.threshold_(scaled_V, float(np.nextafter(least, np.float32(-np.inf))), -math.inf)


def top_logprobs(logprobs_V: Tensor, count: int) -> tuple[tuple[int, float], ...]:
    """Return (token id, logprob) of the likeliest tokens, best first; fewer when fewer are possible."""
    if count == 0:
        return ()
    values_K, token_ids_K = torch.topk(logprobs_V, min(count, len(logprobs_V)))
    pairs = zip(token_ids_K.tolist(), values_K.tolist(), strict=True)
    possible = [(token_id, logprob) for token_id, logprob in pairs if logprob > -math.inf]
    return tuple(sorted(possible, key=lambda pair: (-pair[1], pair[0])))


def _adjust_(logits_V: Tensor, row: Row) -> None:
    if row.counts is not None and needs_counts(row.sampling):
        penalize_(logits_V, row.sampling, row.counts)
    if row.sampling.logit_bias:
        add_bias_(logits_V, row.sampling)
    if row.mask is not None:
        logits_V.masked_fill_(~row.mask, -math.inf)


def _least_kept(scaled_V: np.ndarray, sampling: Settings) -> float:
    """Return the logit of the last token that is kept.

    In numpy, whose vectorised partition and sort take a fraction of torch's time on the CPU.
    """
    if scaled_V.min() == -np.inf:
        scaled_V = scaled_V[scaled_V > -np.inf]  # partition is slow among many equal numbers
    if len(scaled_V) == 0:
        return -math.inf
    most, least = scaled_V.max(), -math.inf
    if 0 < sampling.top_k < len(scaled_V):
        least = np.partition(scaled_V, -sampling.top_k)[-sampling.top_k]
        scaled_V = scaled_V[scaled_V >= least]
    if sampling.top_p < 1:
        # Of a maximum, the logprob is minus the logarithm of the sum.
        norm = most - torch.log_softmax(torch.from_numpy(scaled_V), dim=-1).amax().item()
        least = _least_of_top_p(scaled_V, norm, sampling.top_p)
    if sampling.min_p > 0:
        least = max(least, most + math.log(sampling.min_p))
    return least


def _least_of_top_p(scaled_V: np.ndarray, norm: float, top_p: float) -> float:
    """Look at the likeliest few hundred first; the whole vocabulary is sorted only when it must be."""
    num_candidates = _FIRST_CANDIDATES
    while True:
        is_all = num_candidates >= len(scaled_V)
        best_K = scaled_V if is_all else np.partition(scaled_V, -num_candidates)[-num_candidates:]
        best_K = np.sort(best_K)[::-1]
        last = int(np.searchsorted(np.exp(best_K.astype(np.float64) - norm).cumsum(), top_p))
        if last < len(best_K) or is_all:
            return best_K[min(last, len(best_K) - 1)]
        num_candidates *= 16


def _race(scaled_RV: Tensor, rows: Sequence[Row]) -> Tensor:
    """Return the drawn token ids, int64 [R]."""
    num_rows, num_tokens = scaled_RV.shape
    num_blocks = -(-num_tokens // _BLOCK)
    noise_RN = torch.from_numpy(-np.log(uniforms(
        [row.sampling.seed for row in rows], [row.completion for row in rows], [row.draw for row in rows],
        _BLOCK + num_blocks))).float().to(scaled_RV.device)
    # Not the exp of logprobs: on the CPU that is up to a hundred times slower for -inf and denormals.
    probs_RV = torch.softmax(scaled_RV, dim=-1)
    if num_tokens % _BLOCK:
        probs_RV = functional.pad(probs_RV, (0, num_blocks * _BLOCK - num_tokens))
    probs_RBW = probs_RV.view(num_rows, num_blocks, _BLOCK)
    block_R = (probs_RBW.sum(dim=-1) / noise_RN[:, _BLOCK:]).argmax(dim=-1)
    inside_RW = probs_RBW[torch.arange(num_rows, device=block_R.device), block_R]
    token_ids_R = block_R * _BLOCK + (inside_RW / noise_RN[:, :_BLOCK]).argmax(dim=-1)
    return token_ids_R.clamp_(max=num_tokens - 1)


def _pick(rows_RX: Tensor, places: list[int]) -> Tensor:
    """Return those rows; all of them without a copy."""
    return rows_RX if len(places) == len(rows_RX) else rows_RX[places]


def _argmax(rows_RV: Tensor) -> Tensor:
    """Return the lowest index of each row's largest value; numpy's is ten times torch's on the CPU."""
    if rows_RV.device.type != "cpu":
        return rows_RV.argmax(dim=-1)
    return torch.from_numpy(rows_RV.numpy().argmax(axis=-1))
