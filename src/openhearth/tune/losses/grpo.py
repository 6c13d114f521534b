"""GRPO: every completion weighs the same, whatever its length."""

from __future__ import annotations

from openhearth.tune.losses.records import (
    Clipping,
    LossInput,
    LossOutput,
    clipped_terms,
    finish,
    mean_of_means,
)


def grpo_loss(given: LossInput, clipping: Clipping) -> LossOutput:
    """Return the mean over completions of the mean over tokens of the clipped terms.

    Source: arXiv 2402.03300, equation 3; trl 1.16 `GRPOTrainer._compute_loss`, loss_type "grpo".
    """
    terms_N, is_clipped_N = clipped_terms(given.ratios_N, given.advantages_N, clipping)
    return finish(given, clipping, terms_N, mean_of_means(given), is_clipped_N)
