"""What goes into the engine and what comes out: token ids, never text.

The tuner, the server and the command line use these same records.
"""

# V vocabulary

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

FinishReason = Literal["stop", "length", "cancelled"]
"""stop: a stop token (kept as the last token id) or a stop string; length: max_tokens or context."""

TokenMask = Callable[[Sequence[int]], Tensor | None]
"""Grammar hook: completion token ids so far -> bool [V] of allowed tokens, or None for all."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn. Checked when built; ranges are in `engine/sampler.py`.

    temperature 0 is greedy. top_k 0, top_p 1 and min_p 0 mean off. Order: penalties and logit_bias,
    token mask, temperature, top_k, top_p, min_p. Logprobs are those of the distribution really
    sampled from (of the un-tempered one after penalties, bias and mask when greedy).
    seed: start of the request's counter-based stream; draw i of completion j depends on
    (seed, j, i) alone. num_logprobs: how many alternatives to report per token.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int = 0
    max_tokens: int = 512
    stop_token_ids: frozenset[int] = frozenset()
    num_logprobs: int = 0
    token_mask: TokenMask | None = None


@dataclass(frozen=True)
class Request:
    """One prompt and how to continue it, n times."""

    prompt_token_ids: tuple[int, ...]
    sampling: Sampling = Sampling()
    n: int = 1


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """One token of one completion, as soon as it is drawn.

    index: which of the n completions. top_logprobs: (token id, logprob) pairs, best first.
    finish_reason is set on the last event of a completion; a cancelled completion's last event has
    token_id None.
    """

    request_id: int
    index: int
    token_id: int | None
    logprob: float | None
    top_logprobs: tuple[tuple[int, float], ...] = ()
    finish_reason: FinishReason | None = None


@dataclass(frozen=True)
class Completion:
    """One finished completion. cached_tokens: prompt tokens served by the prefix cache."""

    request_id: int
    index: int
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    top_logprobs: tuple[tuple[tuple[int, float], ...], ...]
    finish_reason: FinishReason
    weights_version: str
    cached_tokens: int = 0
