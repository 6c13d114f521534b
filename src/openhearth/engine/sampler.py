"""From logits to tokens: one row per completion, every row as if it were alone.

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
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from openhearth.engine.penalties import TokenCounts, add_bias_, needs_counts, penalize_
from openhearth.engine.random import uniforms
from openhearth.engine.records import Sampling

_BLOCK = 256
_FIRST_CANDIDATES = 256


class Row(NamedTuple):
    """What one row needs: completion and draw address its noise.

    counts: set when penalties are on. mask: bool [V] of allowed tokens.
    """

    sampling: Sampling
    completion: int = 0
    draw: int = 0
    counts: TokenCounts | None = None
    mask: Tensor | None = None


class Draw(NamedTuple):
    """A drawn token. logprob is NaN when the row had no token with a probability."""

    token_id: int
    logprob: float
    top_logprobs: tuple[tuple[int, float], ...]


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
        truncate_(logits_RV, {place: rows[place].sampling for place in drawing})
    logprobs_RV = torch.log_softmax(logits_RV, dim=-1)
    if len(drawing) < len(rows):
        token_ids_R = _argmax(logits_RV)
    if drawing:
        raced = _race(_pick(logprobs_RV, drawing), [rows[place] for place in drawing])
        if len(drawing) < len(rows):
            token_ids_R[drawing] = raced
        else:
            token_ids_R = raced
    chosen_R = logprobs_RV.gather(1, token_ids_R[:, None])[:, 0]
    return [Draw(token_id, logprob, top_logprobs(logprobs_V, row.sampling.num_logprobs))
            for token_id, logprob, logprobs_V, row
            in zip(token_ids_R.tolist(), chosen_R.tolist(), logprobs_RV, rows, strict=True)]


def truncate_(scaled_RV: Tensor, samplings: Mapping[int, Sampling]) -> None:
    """Set what top-k, top-p and min-p exclude to -inf, in place; each sees what the one before left.

    scaled_RV: float32, logits after temperature. samplings: by row; other rows stay as they are.
    top_p keeps the fewest tokens, likeliest first, whose mass reaches it (arXiv 1904.09751, section
    3.1); min_p those with at least min_p times the largest probability (arXiv 2407.01082, section 3).
    """
    num_tokens = scaled_RV.shape[1]
    top_k = {place: one.top_k for place, one in samplings.items() if 0 < one.top_k < num_tokens}
    if top_k:
        best_RK = _best(_pick(scaled_RV, list(top_k)), max(top_k.values()))
        least_R = [best_K[k - 1] for best_K, k in zip(best_RK, top_k.values(), strict=True)]
        _drop_below_(scaled_RV, list(top_k), least_R)
    top_p = {place: one.top_p for place, one in samplings.items() if one.top_p < 1}
    if top_p:
        least_R = _least_of_top_p(_pick(scaled_RV, list(top_p)), list(top_p.values()))
        _drop_below_(scaled_RV, list(top_p), least_R)
    min_p = {place: one.min_p for place, one in samplings.items() if one.min_p > 0}
    if min_p:
        best_R = _pick(scaled_RV, list(min_p)).amax(dim=-1).tolist()
        least_R = [best + math.log(one) for best, one in zip(best_R, min_p.values(), strict=True)]
        _drop_below_(scaled_RV, list(min_p), least_R)


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


def _least_of_top_p(scaled_RV: Tensor, top_p: list[float]) -> list[float]:
    """Return the logit of the last token that top-p keeps, for each row.

    Looks at the likeliest few hundred first; the whole vocabulary is sorted only when it must be.
    """
    num_tokens = scaled_RV.shape[1]
    norms_R = (scaled_RV.amax(dim=-1) - torch.log_softmax(scaled_RV, dim=-1).amax(dim=-1)).tolist()
    least_R = [math.nan] * len(top_p)
    places, num_candidates = list(range(len(top_p))), _FIRST_CANDIDATES
    while places:
        num_candidates = min(num_candidates, num_tokens)
        best_RK = _best(_pick(scaled_RV, places), num_candidates)
        still = []
        for place, best_K in zip(places, best_RK, strict=True):
            mass_K = np.exp(best_K.astype(np.float64) - norms_R[place]).cumsum()
            last = int(np.searchsorted(mass_K, top_p[place]))
            least_R[place] = best_K[min(last, num_candidates - 1)]
            if last == num_candidates < num_tokens:
                still.append(place)
        places, num_candidates = still, num_candidates * 16
    return least_R


def _race(logprobs_RV: Tensor, rows: Sequence[Row]) -> Tensor:
    """Return the drawn token ids, int64 [R]."""
    num_rows, num_tokens = logprobs_RV.shape
    num_blocks = -(-num_tokens // _BLOCK)
    noise_RN = torch.from_numpy(-np.log(uniforms(
        [row.sampling.seed for row in rows], [row.completion for row in rows], [row.draw for row in rows],
        _BLOCK + num_blocks))).float().to(logprobs_RV.device)
    probs_RV = logprobs_RV.exp()
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


def _drop_below_(scaled_RV: Tensor, places: list[int], least_R: list[float]) -> None:
    for place, least in zip(places, least_R, strict=True):
        below = float(np.nextafter(np.float32(least), np.float32(-np.inf)))
        functional.threshold_(scaled_RV[place], below, -math.inf)


def _best(rows_RV: Tensor, count: int) -> np.ndarray:
    """Return the largest count values of each row, descending.

    On the CPU by numpy, whose vectorised partition and argmax take a fraction of torch's time.
    """
    if rows_RV.device.type != "cpu":
        return torch.topk(rows_RV, count).values.cpu().numpy()
    numbers = rows_RV.numpy()
    if count < numbers.shape[1]:
        numbers = np.partition(numbers, -count)[:, -count:]
    return np.sort(numbers)[:, ::-1]


def _argmax(rows_RV: Tensor) -> Tensor:
    """Return the lowest index of each row's largest value."""
    if rows_RV.device.type != "cpu":
        return rows_RV.argmax(dim=-1)
    return torch.from_numpy(rows_RV.numpy().argmax(axis=-1))
