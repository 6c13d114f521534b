"""Rewards to advantages: what is skipped, left out, masked, and counted all the same."""

import pytest
import torch

from openhearth.tune.advantages import group_advantages, length_penalty
from openhearth.tune.groups import learn
from openhearth.tune.losses.records import Clipping, LossInput
from openhearth.tune.losses.table import POLICY_LOSSES
from openhearth.tune.rollout import Rolled


def completion(reward, length=3, finish_reason="stop", problem="p"):
    verdict = "grader_failed" if reward is None else "correct" if reward == 1 else "wrong"
    return Rolled(0, problem, (7, 8), tuple(range(length)), (-0.5,) * length, "", finish_reason, verdict,
                  reward, "")


def test_advantages_are_rewards_less_the_mean_over_the_deviation():
    assert group_advantages([1.0, 0.0, 0.0, 0.0], is_scaled=False) == [0.75, -0.25, -0.25, -0.25]
    scaled = group_advantages([1.0, 0.0, 0.0, 0.0], is_scaled=True)
    deviation = torch.tensor([1.0, 0, 0, 0]).std(correction=0).item()
    assert scaled == pytest.approx([0.75 / (deviation + 1e-6)] + [-0.25 / (deviation + 1e-6)] * 3)
    assert sum(group_advantages([0.1, 0.7, 0.4], is_scaled=True)) == pytest.approx(0)


@pytest.mark.parametrize("rewards", [[1.0, 1.0, 1.0], [0.0, 0.0], [0.3, None, 0.3], [1.0, None],
                                     [None, None]])
def test_a_group_without_differences_teaches_nothing(rewards):
    assert group_advantages(rewards, is_scaled=True) is None
    group, = learn([[completion(reward) for reward in rewards]], is_scaled=True, overlong="keep",
                   max_tokens=9)
    assert group.trained == []
    assert group.num_completions == sum(reward is not None for reward in rewards), "but it counts"


def test_a_failed_grader_is_left_out_of_baseline_and_loss():
    assert group_advantages([1.0, None, 0.0], is_scaled=False) == [0.5, None, -0.5]
    group, = learn([[completion(1.0), completion(None), completion(0.0)]], is_scaled=False, overlong="keep",
                   max_tokens=9)
    assert [one.advantage for one in group.trained] == [0.5, -0.5]
    assert (group.num_completions, group.num_tokens) == (2, 6)


def test_masked_completions_count_in_the_baseline_and_not_in_the_loss():
    group, = learn([[completion(1.0), completion(0.0, 9, "length")]], is_scaled=False, overlong="mask",
                   max_tokens=9)
    assert [one.advantage for one in group.trained] == [0.5]
    assert (group.num_completions, group.num_tokens) == (1, 3)


def test_the_penalty_of_long_completions_is_a_line_over_the_last_part():
    assert [length_penalty(length, 20, 4) for length in (1, 16, 17, 18, 20)] == [0, 0, -0.25, -0.5, -1]
    group, = learn([[completion(1.0, 20, "length"), completion(1.0, 4)]], is_scaled=False, overlong="penalty",
                   max_tokens=20)
    assert [one.advantage for one in group.trained] == [-0.5, 0.5]


def test_prompts_are_not_trained():
    group, = learn([[completion(1.0), completion(0.0)]], is_scaled=False, overlong="keep", max_tokens=9)
    one = group.trained[0]
    assert one.token_ids == (7, 8, 0, 1, 2) and one.is_trained == (False, False, True, True, True)
    assert one.sampled.tolist() == [-0.5] * 3


@pytest.mark.parametrize("name", list(POLICY_LOSSES))
def test_skipping_a_group_saves_time_and_changes_nothing(name):
    """The loss of an update equals that with the skipped group's completions computed, advantage 0."""
    rolled = [[completion(1.0, 2), completion(0.0, 5)], [completion(1.0, 4), completion(1.0, 3)]]
    groups = learn(rolled, is_scaled=True, overlong="keep", max_tokens=9)
    num_completions = sum(group.num_completions for group in groups)
    num_tokens = sum(group.num_tokens for group in groups)
    assert (num_completions, num_tokens) == (4, 14)
    lengths, advantages = [2, 5, 4, 3], [one.advantage for one in groups[0].trained] + [0.0, 0.0]

    def loss(count):
        sizes = torch.tensor(lengths[:count])
        generator = torch.Generator().manual_seed(0)
        sampled = torch.randn(14, generator=generator)[:int(sizes.sum())]
        logprobs = sampled + 0.1 * torch.randn(14, generator=generator)[:len(sampled)]
        places = torch.arange(count).repeat_interleave(sizes)
        return POLICY_LOSSES[name].loss(
            LossInput(logprobs, sampled, torch.tensor(advantages)[places], places, num_completions,
                      num_tokens, 9), Clipping()).loss.item()

    assert loss(2) == pytest.approx(loss(4), rel=1e-4)
