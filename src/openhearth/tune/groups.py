"""From graded completions to what learns: which tokens, and how much better than its group each was."""

# G completions of a group

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from openhearth.kernels.logprob import KeptTokens
from openhearth.tune.advantages import group_advantages, length_penalty
from openhearth.tune.rollout import Rolled


@dataclass
class Trained:
    """One completion that learns. kept: tokens its draws could take, None for all; reference: see LossInput.

    Both are filled in before the first update. Example: ``learn([group], ...)[0].trained[0].advantage``.
    """

    token_ids: tuple[int, ...]
    is_trained: tuple[bool, ...]
    sampled: Tensor
    advantage: float
    kept: KeptTokens | None = None
    reference: Tensor | None = None


@dataclass(frozen=True)
class Group:
    """One problem's completions. trained: empty where there is nothing to learn.

    num_completions, num_tokens: of all that count in the loss, those of a skipped group included, so that
    skipping it saves time and changes nothing else. Example: ``learn([group], ...)[0].num_tokens``.
    """

    problem: str
    num_completions: int
    num_tokens: int
    trained: list[Trained] = field(default_factory=list)


def learn(rolled: Sequence[Sequence[Rolled]], *, is_scaled: bool, overlong: str,
          max_tokens: int) -> list[Group]:
    """Return what there is to learn from each group.

    overlong: "keep" takes completions that reached max_tokens as they are, "mask" leaves them out of the loss
    (their rewards still count in the baseline), "penalty" lowers rewards over the last fifth of max_tokens
    (arXiv 2503.14476, sections 3.4 and 4.1).
    """
    groups = []
    for completions_G in rolled:
        rewards_G = [_reward(one, overlong, max_tokens) for one in completions_G]
        advantages_G = group_advantages(rewards_G, is_scaled=is_scaled)
        counted = [place for place, one in enumerate(completions_G) if one.reward is not None
                   and not (overlong == "mask" and one.finish_reason == "length")]
        group = Group(completions_G[0].problem, len(counted),
                      sum(len(completions_G[place].token_ids) for place in counted))
        if advantages_G is not None:
            group.trained.extend(_trained(completions_G[place], advantages_G[place]) for place in counted)
        groups.append(group)
    return groups


def _reward(one: Rolled, overlong: str, max_tokens: int) -> float | None:
    if one.reward is None or overlong != "penalty":
        return one.reward
    return one.reward + length_penalty(len(one.token_ids), max_tokens, max(1, max_tokens // 5))


def _trained(one: Rolled, advantage: float) -> Trained:
    is_trained = (False,) * len(one.prompt) + (True,) * len(one.token_ids)
    return Trained(one.prompt + one.token_ids, is_trained, torch.tensor(one.logprobs), advantage)
