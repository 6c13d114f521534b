"""What a request can want of its prompt instead of an answer: the mean of its hidden states, or its scores.

A reader sees the last hidden states of a prompt as steps compute them, beside rows of other requests. What it
gives does not depend on how the prompt was cut into steps: see `MeanPool` and `PromptScores`.

Does not: draw tokens, or know what the numbers are for.
"""

# T rows of a chunk, D model

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from openhearth.engine.records import Sampling
from openhearth.errors import HearthError
from openhearth.kernels.logprob import token_logprobs
from openhearth.kernels.sampling import Row, draw

_ONE = float(2**28)
"""Fixed point of the sums: steps of 4e-9, far below the rounding of float32 hidden states of size 1."""

_ROWS_AT_ONCE = 64

_LARGEST = 2.0**14
"""Largest hidden state that is taken: 2**20 of them still add up in 63 bits."""


class MeanPool:
    """The mean of a prompt's last hidden states.

    Added up in fixed point: whole numbers give the same sum in any order, so the mean has the same bits
    however the prompt was cut. Example: ``Request(ids, reader=pool)``, then ``pool.mean()`` when it ended.
    """

    def __init__(self) -> None:
        self.num_rows = 0
        self._sum_D: Tensor | int = 0

    def read(self, start: int, hidden_TD: Tensor, logits: Callable[[Tensor], Tensor]) -> None:
        """Add rows. Raises: HearthError for hidden states that are not numbers."""
        largest = hidden_TD.abs().max().item()
        if not largest <= _LARGEST:
            raise HearthError(f"the largest hidden state is {largest:g}", why=f"expected up to {_LARGEST:g}",
                              hint="try --dtype float32, and check the weights")
        self._sum_D = self._sum_D + (hidden_TD.double() * _ONE).round().long().sum(0)
        self.num_rows += len(hidden_TD)

    def mean(self) -> list[float]:
        """Return the mean of what was read."""
        return (self._sum_D.double() / (_ONE * self.num_rows)).tolist()


class PromptScores:
    """Log-probabilities, at temperature 1, of a prompt's tokens from position `first` on, given those before.

    Bit for bit those of `Engine.score` where a row's arithmetic does not depend on its pack (the native
    kernels). num_top: how many of the likeliest tokens are wanted in each place; top has them as (token id,
    logprob) pairs, best first. Both lists grow while the prompt is read.
    Example: ``PromptScores((1, 2, 3), first=1)``.
    """

    def __init__(self, prompt_token_ids: Sequence[int], *, first: int = 1, num_top: int = 0) -> None:
        assert first >= 1
        self.logprobs: list[float] = []
        self.top: list[tuple[tuple[int, float], ...]] = []
        self._targets_T = torch.tensor(prompt_token_ids)
        self._first = first
        self._row = Row(Sampling(temperature=0.0, num_logprobs=num_top)) if num_top else None

    def read(self, start: int, hidden_TD: Tensor, logits: Callable[[Tensor], Tensor]) -> None:
        """Score the tokens that follow these rows."""
        skipped = max(0, self._first - 1 - start)
        targets_T = self._targets_T[start + skipped + 1:start + len(hidden_TD) + 1].to(hidden_TD.device)
        if len(targets_T):
            rows_TD = hidden_TD[skipped:skipped + len(targets_T)]
            self.logprobs += token_logprobs(rows_TD, logits, targets_T).tolist()
            for part_TD in rows_TD.split(_ROWS_AT_ONCE) if self._row else ():
                draws = draw(logits(part_TD), [self._row] * len(part_TD))
                self.top += [drawn.top_logprobs for drawn in draws]
