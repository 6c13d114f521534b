"""What earlier tokens and the request itself add to or take from a row of logits."""

# R rows, V vocabulary, K touched entries of one row

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from openhearth.engine.records import Sampling


class TokenCounts:
    """Distinct tokens of a prompt and its completion, and how often the completion has each.

    Example: ``counts = TokenCounts([5, 6]); counts.add(6); counts.token_ids, counts.counts`` is
    ``array("q", [5, 6]), array("q", [0, 1])``.
    """

    def __init__(self, prompt_token_ids: Sequence[int]) -> None:
        distinct = dict.fromkeys(prompt_token_ids)
        self.token_ids = array("q", distinct)
        self.counts = array("q", bytes(8 * len(distinct)))
        self._place = {token_id: place for place, token_id in enumerate(distinct)}

    def add(self, token_id: int) -> None:
        """Count one more token of the completion."""
        place = self._place.setdefault(token_id, len(self.token_ids))
        if place == len(self.token_ids):
            self.token_ids.append(token_id)
            self.counts.append(1)
        else:
            self.counts[place] += 1


def needs_counts(sampling: Sampling) -> bool:
    """Return whether any penalty is on."""
    return bool(sampling.repetition_penalty != 1 or sampling.presence_penalty or sampling.frequency_penalty)


def penalize_(logits_V: Tensor, sampling: Sampling, counts: TokenCounts) -> None:
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


def add_bias_(logits_V: Tensor, sampling: Sampling) -> None:
    """Add the request's logit bias to one row, in place."""
    token_ids = torch.tensor(list(sampling.logit_bias), device=logits_V.device)
    logits_V[token_ids] += torch.tensor(list(sampling.logit_bias.values()), dtype=logits_V.dtype,
                                        device=logits_V.device)
