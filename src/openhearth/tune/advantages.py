"""From the rewards of a group of completions of one prompt to how much better each was than the others."""

# G completions of a group

from __future__ import annotations

import math
from collections.abc import Sequence

_EPSILON = 1e-6


def group_advantages(rewards_G: Sequence[float | None], *, is_scaled: bool) -> list[float | None] | None:
    """Return each reward less the group's mean, divided by its deviation + 1e-6 when is_scaled.

    None where the grader failed: such a completion counts neither in the mean nor in the deviation. Returns
    None for a group from which nothing can be learned: all rewards equal, or fewer than two.
    Source: arXiv 2402.03300, section 4.1.2; unscaled, arXiv 2503.20783, section 3.2.
    """
    known = [reward for reward in rewards_G if reward is not None]
    if len(known) < 2 or min(known) == max(known):
        return None
    mean = math.fsum(known) / len(known)
    scale = 1.0
    if is_scaled:
        scale = math.sqrt(math.fsum((reward - mean) ** 2 for reward in known) / len(known)) + _EPSILON
    return [None if reward is None else (reward - mean) / scale for reward in rewards_G]


def length_penalty(num_tokens: int, max_tokens: int, buffer_tokens: int) -> float:
    """Return 0 up to max_tokens - buffer_tokens, from there a line down to -1 at max_tokens.

    Source: arXiv 2503.14476, equation 13 (soft overlong punishment).
    """
    return -min(1.0, max(0.0, (num_tokens - (max_tokens - buffer_tokens)) / buffer_tokens))
