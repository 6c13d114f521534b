"""What a draw takes and gives, and the counts that penalties are made from."""

# V vocabulary

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from torch import Tensor


class Settings(Protocol):
    """How a token is drawn, in the order of application; `engine.Sampling` says what each one means."""

    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float]
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    seed: int
    num_logprobs: int


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


def needs_counts(sampling: Settings) -> bool:
    """Return whether any penalty is on."""
    return bool(sampling.repetition_penalty != 1 or sampling.presence_penalty or sampling.frequency_penalty)


class Row(NamedTuple):
    """What one row needs: completion and draw address its noise.

    counts: set when penalties are on. mask: bool [V] of allowed tokens.
    Example: ``Row(Sampling(seed=7), completion=0, draw=12)``.
    """

    sampling: Settings
    completion: int = 0
    draw: int = 0
    counts: TokenCounts | None = None
    mask: Tensor | None = None


class Draw(NamedTuple):
    """A drawn token. logprob is NaN when the row had no token with a probability.

    top_logprobs: (token id, logprob) of the likeliest tokens, best first, the lower id among equals; fewer
    than asked for when fewer are possible. Example: ``Draw(19, -0.25, ((19, -0.25), (4, -1.6)))``.
    """

    token_id: int
    logprob: float
    top_logprobs: tuple[tuple[int, float], ...]
