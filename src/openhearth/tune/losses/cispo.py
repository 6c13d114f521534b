"""CISPO: the ratio is only a weight, so that no token stops learning."""

from __future__ import annotations

import torch

from openhearth.tune.losses.records import Clipping, LossInput, LossOutput, finish


def cispo_loss(given: LossInput, clipping: Clipping) -> LossOutput:
    """Return the mean over all tokens of -min(r, 1 + high) A log p, the ratio without a gradient.

    There is no lower bound. num_clipped counts the tokens with less weight than their ratio. Source: arXiv
    2506.13585, equations 4 and 5; trl 1.16 `GRPOTrainer._compute_loss`, loss_type "cispo", whose epsilon_high
    is 1 + high here.
    """
    ratios_N = given.ratios_N.detach()
    terms_N = -ratios_N.clamp(max=1 + clipping.high) * given.advantages_N * given.logprobs_N
    weights_N = torch.full_like(terms_N, 1 / given.num_tokens)
    return finish(given, clipping, terms_N, weights_N, ratios_N > 1 + clipping.high)
