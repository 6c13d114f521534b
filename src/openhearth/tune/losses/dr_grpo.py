"""Dr. GRPO: every token weighs the same in every step, so that length is not rewarded."""

from __future__ import annotations

import torch

from openhearth.tune.losses.records import Clipping, LossInput, LossOutput, clipped_terms, finish


def dr_grpo_loss(given: LossInput, clipping: Clipping) -> LossOutput:
    """Return the sum of the clipped terms over completions times the longest there could be.

    Goes with advantages that are not divided by their deviation. Source: arXiv 2503.20783, section 3.2 and
    appendix A; trl 1.16 `GRPOTrainer._compute_loss`, loss_type "dr_grpo".
    """
    terms_N, is_clipped_N = clipped_terms(given.ratios_N, given.advantages_N, clipping)
    weights_N = torch.full_like(terms_N, 1 / (given.num_completions * given.max_tokens))
    return finish(given, clipping, terms_N, weights_N, is_clipped_N)
