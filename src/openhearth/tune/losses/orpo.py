"""Odds-ratio preference optimisation: fine-tuning on the chosen answers that also parts the odds."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from openhearth.tune.losses.preferred import PreferenceInput, PreferenceOutput, paired_output


def orpo_loss(given: PreferenceInput) -> PreferenceOutput:
    """Return the chosen answer's mean negative log-probability - beta * ln sigmoid(log odds ratio) per pair.

    A probability is the mean over an answer's tokens, exponentiated; no reference is used. Rewards are
    beta * mean log-probability. Source: arXiv 2403.07691, equations 3, 6 and 7, with beta for lambda.
    """
    chosen = given.chosen.policy / given.chosen.lengths
    rejected = given.rejected.policy / given.rejected.lengths
    terms_U = -chosen - given.beta * logsigmoid(_log_odds(chosen) - _log_odds(rejected))
    return paired_output(terms_U, given.beta * chosen, given.beta * rejected)


def _log_odds(logprobs: Tensor) -> Tensor:
    """ln(p / (1 - p)); log-probabilities are below 0, by rounding sometimes 0."""
    bounded = logprobs.clamp(max=-1e-12)
    return bounded - torch.log(-torch.expm1(bounded))
