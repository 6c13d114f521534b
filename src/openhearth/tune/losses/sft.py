"""Cross-entropy of the trained tokens: what supervised fine-tuning lowers."""

# N trained tokens of a pack

from __future__ import annotations

from torch import Tensor


def sft_loss(logprobs_N: Tensor, num_trained: int) -> Tensor:
    """Return this pack's share of the mean negative log-probability of a batch's trained tokens.

    num_trained: of the whole batch, so that the shares of its packs add up to the mean, however the batch
    is cut.
    """
    return -logprobs_N.sum() / num_trained
