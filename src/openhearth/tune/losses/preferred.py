"""What a preference loss takes and gives.

Log-probabilities are sums over an answer's tokens, natural logarithms, float64: their differences are small
beside them.
"""

# C chosen answers, R rejected ones (as many in paired losses, side by side), U terms

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Answers:
    """Answers of one kind. policy: under the weights that learn, differentiable; reference: under those
    before tuning; lengths: tokens.

    Example: ``Answers(torch.tensor([-3.0]), torch.tensor([-2.5]), torch.tensor([4.0]))``.
    """

    policy: Tensor
    reference: Tensor
    lengths: Tensor

    @property
    def log_ratios(self) -> Tensor:
        """How much more likely each answer has become, in nats."""
        return self.policy - self.reference


@dataclass(frozen=True)
class PreferenceInput:
    """One pack's answers. beta: strength of the reference (or weight of the odds ratio, for ORPO).

    divergence: estimate of KL(policy, reference) over the batch, at least 0, without a gradient.
    chosen_weight, rejected_weight: of either kind. The last three are KTO's.
    """

    chosen: Answers
    rejected: Answers
    beta: float
    divergence: float = 0.0
    chosen_weight: float = 1.0
    rejected_weight: float = 1.0


@dataclass(frozen=True)
class PreferenceOutput:
    """terms_U: what the batch's mean is over. chosen_rewards_C, rejected_rewards_R: what the loss implies
    answers are worth, without a gradient. is_right_U: whether it would judge as the data does.

    Example: ``dpo_loss(given).terms_U.mean().backward()``.
    """

    terms_U: Tensor
    chosen_rewards_C: Tensor
    rejected_rewards_R: Tensor
    is_right_U: Tensor


PreferenceLoss = Callable[[PreferenceInput], PreferenceOutput]


def paired_output(terms_U: Tensor, chosen_rewards_U: Tensor, rejected_rewards_U: Tensor) -> PreferenceOutput:
    """Return the output of a loss on pairs: right is a chosen answer that is worth more."""
    return PreferenceOutput(terms_U, chosen_rewards_U.detach(), rejected_rewards_U.detach(),
                            (chosen_rewards_U > rejected_rewards_U).detach())
