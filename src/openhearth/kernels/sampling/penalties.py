"""What earlier tokens and the request itself add to or take from a row of logits, in plain torch."""

# R rows, V vocabulary, K touched entries of one row

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from openhearth.kernels.sampling.inputs import Settings, TokenCounts


def penalize_(logits_V: Tensor, sampling: Settings, counts: TokenCounts) -> None:
    """Apply the three penalties to one row, in place.

    Repetition, over prompt and completion: a positive logit is divided, a negative one multiplied
    (arXiv 1909.05858, section 4.1, with the sign rule of transformers 5.23
    `RepetitionPenaltyLogitsProcessor`). Then, over the completion alone,
    ``logit - count * frequency - (count > 0) * presence`` (OpenAI API reference, "Frequency and
    presence penalties").
    """
    token_ids_K = torch.from_numpy(np.array(counts.token_ids)).to(logits_V.device)
    counts_K = torch.from_numpy(np.array(counts.counts)).to(logits_V)
    values_K = logits_V[token_ids_K]
    penalty = sampling.repetition_penalty
    if penalty != 1:
        values_K = torch.where(values_K > 0, values_K / penalty, values_K * penalty)
    values_K -= counts_K * sampling.frequency_penalty + (counts_K > 0) * sampling.presence_penalty
    logits_V[token_ids_K] = values_K


def add_bias_(logits_V: Tensor, sampling: Settings) -> None:
    """Add the request's logit bias to one row, in place."""
    token_ids = torch.tensor(list(sampling.logit_bias), device=logits_V.device)
    logits_V[token_ids] += torch.tensor(list(sampling.logit_bias.values()), dtype=logits_V.dtype,
                                        device=logits_V.device)
