"""Policy losses: by hand, by torch.autograd in float64, and by TRL's formulas on padded tensors."""

import math

import pytest
import torch
from torch.autograd import gradcheck

from openhearth.tune.losses.records import Clipping, LossInput, k3
from openhearth.tune.losses.table import POLICY_LOSSES

MAX_TOKENS = 4
NAMES = list(POLICY_LOSSES)


def three_tokens(logprobs, *, reference=None):
    """Two completions: one of two tokens with advantage 1, one of one token with advantage -0.5."""
    sampled = torch.tensor([math.log(0.5), math.log(0.25), math.log(0.1)], dtype=logprobs.dtype)
    return LossInput(logprobs, sampled, torch.tensor([1.0, 1.0, -0.5]), torch.tensor([0, 0, 1]), 2, 3,
                     MAX_TOKENS, reference)


def logprobs_of(*ratios):
    """Log-probabilities with these ratios to those sampled."""
    return torch.tensor([math.log(0.5 * ratios[0]), math.log(0.25 * ratios[1]), math.log(0.1 * ratios[2])],
                        dtype=torch.float64, requires_grad=True)


GEOMETRIC = math.sqrt(1.1 * 1.5)
BY_HAND = {
    # ratios 1.1, 1.5, 0.9; clipped terms -1.1, -(1 + high), 0.5 * 0.9
    "grpo": ((-1.1 - 1.2) / 2 + 0.45) / 2,
    "dr_grpo": (-1.1 - 1.2 + 0.45) / (2 * MAX_TOKENS),
    "dapo": (-1.1 - 1.28 + 0.45) / 3,
    # the first completion's ratio is their geometric mean, beyond its bound; the second's is below its bound
    "gspo": (-min(GEOMETRIC, 1.0004) + 0.5 * max(0.9, 1 - 3e-4)) / 2,
    "cispo": (-1.1 * math.log(0.55) - 1.5 * math.log(0.375) + 0.5 * 0.9 * math.log(0.09)) / 3,
}
GRADIENTS_BY_HAND = {
    "grpo": (-1.1 / 4, 0.0, 0.45 / 2),
    "dr_grpo": (-1.1 / 8, 0.0, 0.45 / 8),
    "dapo": (-1.1 / 3, 0.0, 0.45 / 3),
    "gspo": (0.0, 0.0, 0.0),
    "cispo": (-1.1 / 3, -1.5 / 3, 0.45 / 3),
}
CLIPPED = {"grpo": 1, "dr_grpo": 1, "dapo": 1, "gspo": 3, "cispo": 0}


def settings_of(name, kl=0.0):
    method = POLICY_LOSSES[name]
    return Clipping(method.clip_low, method.clip_high, kl)


@pytest.mark.parametrize("name", NAMES)
def test_three_tokens_give_the_loss_and_gradient_computed_by_hand(name):
    logprobs = logprobs_of(1.1, 1.5, 0.9)
    output = POLICY_LOSSES[name].loss(three_tokens(logprobs), settings_of(name))
    output.loss.backward()
    assert output.loss.item() == pytest.approx(BY_HAND[name], rel=1e-6)
    assert logprobs.grad.tolist() == pytest.approx(list(GRADIENTS_BY_HAND[name]), rel=1e-6)
    assert output.num_clipped == CLIPPED[name]


@pytest.mark.parametrize("name", NAMES)
def test_on_policy_every_loss_is_the_policy_gradient(name):
    """With all ratios 1 the gradient of a token is -advantage times the weight its method gives it."""
    logprobs = logprobs_of(1.0, 1.0, 1.0)
    POLICY_LOSSES[name].loss(three_tokens(logprobs), settings_of(name)).loss.backward()
    weights = {"grpo": (1 / 4, 1 / 4, 1 / 2), "dr_grpo": (1 / 8,) * 3, "dapo": (1 / 3,) * 3,
               "gspo": (1 / 4, 1 / 4, 1 / 2), "cispo": (1 / 3,) * 3}[name]
    wanted = [-advantage * weight for advantage, weight in zip((1, 1, -0.5), weights, strict=True)]
    assert logprobs.grad.tolist() == pytest.approx(wanted)


def test_the_divergence_of_three_tokens_is_that_computed_by_hand():
    logprobs = logprobs_of(1.0, 1.0, 1.0)
    reference = logprobs.detach() + torch.tensor([0.0, 0.3, -0.2])
    wanted = [0.0, math.exp(0.3) - 0.3 - 1, math.exp(-0.2) + 0.2 - 1]
    assert k3(logprobs, reference).tolist() == pytest.approx(wanted, abs=1e-7)
    output = POLICY_LOSSES["dapo"].loss(three_tokens(logprobs, reference=reference), settings_of("dapo", 0.1))
    assert output.loss.item() == pytest.approx((-1 - 1 + 0.5 + 0.1 * sum(wanted)) / 3, rel=1e-6)
    assert output.kl == pytest.approx(sum(wanted), rel=1e-6)


@pytest.mark.parametrize("kl", [0.0, 0.3])
@pytest.mark.parametrize("name", [name for name in NAMES if name != "cispo"])
def test_gradients_are_those_of_finite_differences(name, kl):
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(3, generator=generator, dtype=torch.float64) * 0.05
    logprobs = (logprobs_of(1.0, 1.0, 1.0).detach() + noise).requires_grad_(True)
    reference = torch.randn(3, generator=generator, dtype=torch.float64) - 1
    clipping = Clipping(0.5, 0.5, kl)
    assert gradcheck(lambda x: POLICY_LOSSES[name].loss(three_tokens(x, reference=reference), clipping).loss,
                     logprobs)


def padded_batch(seed=0, lengths=(5, 1, 3, 7)):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.zeros(len(lengths), max(lengths), dtype=torch.float64)
    for row, length in enumerate(lengths):
        mask[row, :length] = 1
    draw = {name: torch.randn(mask.shape, generator=generator, dtype=torch.float64) for name in "abc"}
    old = draw["a"] - 2
    advantages = torch.tensor([1.2, -0.7, 0.3, -0.8], dtype=torch.float64)
    return mask, old, old + 0.4 * draw["b"], old + 0.2 * draw["c"], advantages


def trl_loss(name, mask, old, new, reference, advantages, clipping):
    """`GRPOTrainer._compute_loss` of trl 1.16 on padded tensors, as its documentation defines it."""
    log_ratio = new - old
    if name == "gspo":
        log_ratio = (log_ratio * mask).sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1.0)
    coef_1 = torch.exp(log_ratio)
    if name == "cispo":
        per_token_loss = -coef_1.clamp(max=1 + clipping.high).detach() * advantages[:, None] * new
    else:
        coef_2 = torch.clamp(coef_1, 1 - clipping.low, 1 + clipping.high)
        per_token_loss = -torch.min(coef_1 * advantages[:, None], coef_2 * advantages[:, None])
    per_token_kl = torch.exp(reference - new) - (reference - new) - 1
    per_token_loss = per_token_loss + clipping.kl * per_token_kl
    if name in ("grpo", "gspo"):
        return ((per_token_loss * mask).sum(-1) / mask.sum(-1).clamp(min=1.0)).mean()
    if name == "dr_grpo":
        return (per_token_loss * mask).sum() / (per_token_loss.size(0) * 16)
    return (per_token_loss * mask).sum() / mask.sum()


@pytest.mark.parametrize("cuts", [((0, 1, 2, 3),), ((2, 0), (3,), (1,))], ids=["one pack", "three packs"])
@pytest.mark.parametrize("name", NAMES)
def test_losses_and_gradients_are_those_of_trl_however_the_update_is_packed(name, cuts):
    mask, old, new, reference, advantages = padded_batch()
    clipping = settings_of(name, kl=0.05)
    theirs = new.clone().requires_grad_(True)
    wanted = trl_loss(name, mask, old, theirs, reference, advantages, clipping)
    wanted.backward()
    ours, total = new.clone().requires_grad_(True), 0.0
    for rows in cuts:
        lengths = [int(mask[row].sum()) for row in rows]

        def cut(values, rows=rows, lengths=lengths):
            return torch.cat([values[row, :length] for row, length in zip(rows, lengths, strict=True)])

        places = torch.arange(len(rows)).repeat_interleave(torch.tensor(lengths))
        output = POLICY_LOSSES[name].loss(
            LossInput(cut(ours), cut(old), advantages[list(rows)][places], places, 4, int(mask.sum()), 16,
                      cut(reference)), clipping)
        output.loss.backward()
        total += output.loss.item()
    assert total == pytest.approx(wanted.item(), rel=1e-6)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-6, atol=1e-9)
    assert theirs.grad.abs().max() > 0
