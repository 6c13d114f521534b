"""GSPO: a completion has one ratio, the geometric mean of its tokens'."""

# N trained tokens of a pack, C completions of a pack

from __future__ import annotations

import torch

from openhearth.tune.losses.records import (
    Clipping,
    LossInput,
    LossOutput,
    clipped_terms,
    completion_lengths,
    finish,
    mean_of_means,
)


def gspo_loss(given: LossInput, clipping: Clipping) -> LossOutput:
    """Return the mean over completions of the terms of their ratios.

    Source: arXiv 2507.18071, equations 5 and 7; trl 1.16 `GRPOTrainer._compute_loss`, loss_type "grpo" with
    importance_sampling_level "sequence".
    """
    lengths_C = completion_lengths(given.completions_N)
    sums_C = torch.zeros_like(lengths_C, dtype=given.logprobs_N.dtype).index_add(
        0, given.completions_N, given.logprobs_N - given.sampled_N)
    ratios_N = torch.exp(sums_C / lengths_C)[given.completions_N]
    terms_N, is_clipped_N = clipped_terms(ratios_N, given.advantages_N, clipping)
    return finish(given, clipping, terms_N, mean_of_means(given), is_clipped_N)
