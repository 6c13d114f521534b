"""DAPO: every token of an update weighs the same."""

from __future__ import annotations

import torch

from openhearth.tune.losses.records import Clipping, LossInput, LossOutput, clipped_terms, finish


def dapo_loss(given: LossInput, clipping: Clipping) -> LossOutput:
    """Return the mean over all tokens of the update of the clipped terms.

    Source: arXiv 2503.14476, equation 8; trl 1.16 `GRPOTrainer._compute_loss`, loss_type "dapo".
    """
    terms_N, is_clipped_N = clipped_terms(given.ratios_N, given.advantages_N, clipping)
    return finish(given, clipping, terms_N, torch.full_like(terms_N, 1 / given.num_tokens), is_clipped_N)
