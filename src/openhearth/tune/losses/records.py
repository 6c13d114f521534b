"""What a policy loss takes and gives, and the arithmetic that several share."""

# N trained tokens of a pack, C completions of a pack

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Clipping:
    """How far a ratio may move before a token stops learning: to 1 - low and 1 + high. kl: weight of the
    divergence from the reference. Example: ``Clipping(low=0.2, high=0.28)``.
    """

    low: float = 0.2
    high: float = 0.2
    kl: float = 0.0


@dataclass(frozen=True)
class LossInput:
    """The trained tokens of one pack of whole completions.

    logprobs_N: under the weights that learn, differentiable. sampled_N: when they were drawn, from the same
    truncated and tempered distribution. reference_N: under the reference, None without one. advantages_N:
    of each token's completion. completions_N: int64, which of the pack's C completions a token is of.
    num_completions, num_tokens: of the whole update, so that the shares of its packs add up, however it is
    cut. max_tokens: longest completion there could be.
    Example: ``LossInput(logprobs_N, sampled_N, advantages_N, torch.tensor([0, 0, 1]), 2, 3, 128)``.
    """

    logprobs_N: Tensor
    sampled_N: Tensor
    advantages_N: Tensor
    completions_N: Tensor
    num_completions: int
    num_tokens: int
    max_tokens: int
    reference_N: Tensor | None = None

    @property
    def ratios_N(self) -> Tensor:
        """How much more likely each token has become since it was drawn."""
        return torch.exp(self.logprobs_N - self.sampled_N)


@dataclass(frozen=True)
class LossOutput:
    """This pack's share of the loss; num_clipped: its tokens whose gradient clipping took away.

    kl: sum over the pack's tokens of the divergence from the reference, 0 without one.
    Example: ``grpo_loss(loss_input, Clipping()).loss.backward()``.
    """

    loss: Tensor
    num_clipped: int
    kl: float


PolicyLoss = Callable[[LossInput, Clipping], LossOutput]


def finish(given: LossInput, clipping: Clipping, terms_N: Tensor, weights_N: Tensor,
           is_clipped_N: Tensor) -> LossOutput:
    """Return the weighted sum of the tokens' terms, the divergence from the reference added to each."""
    kl = 0.0
    if given.reference_N is not None:
        kl_N = k3(given.logprobs_N, given.reference_N)
        kl = float(kl_N.detach().sum())
        terms_N = terms_N + clipping.kl * kl_N
    return LossOutput((terms_N * weights_N).sum(), int(is_clipped_N.sum()), kl)


def clipped_terms(ratios: Tensor, advantages: Tensor, clipping: Clipping) -> tuple[Tensor, Tensor]:
    """Return -min(r A, clip(r, 1 - low, 1 + high) A) and where the clip decided.

    Source: arXiv 1707.06347, equation 7 (PPO); two bounds, arXiv 2503.14476, section 3.1 (clip-higher).
    """
    bounded = ratios.clamp(1 - clipping.low, 1 + clipping.high)
    is_clipped = ((ratios > 1 + clipping.high) & (advantages > 0)) | (
        (ratios < 1 - clipping.low) & (advantages < 0))
    return -torch.minimum(ratios * advantages, bounded * advantages), is_clipped


def k3(logprobs_N: Tensor, reference_N: Tensor) -> Tensor:
    """Return exp(d) - d - 1 with d = reference - logprob: at least 0, unbiased for KL(policy, reference).

    Source: J. Schulman, "Approximating KL divergence" (2020), estimator k3; arXiv 2402.03300, equation 4.
    """
    difference_N = reference_N - logprobs_N
    return torch.exp(difference_N) - difference_N - 1


def completion_lengths(completions_N: Tensor) -> Tensor:
    """Return each completion's number of trained tokens, float32 [C]."""
    return torch.bincount(completions_N).float()


def mean_of_means(given: LossInput) -> Tensor:
    """Return weights_N that make a sum the mean over completions of the mean over tokens."""
    return 1 / (completion_lengths(given.completions_N)[given.completions_N] * given.num_completions)
