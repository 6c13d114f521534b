"""Log-probabilities of given tokens and their entropies in plain torch."""

# R rows, V vocabulary

from __future__ import annotations

import torch
from torch import Tensor


def row_logprobs(logits_RV: Tensor, targets_R: Tensor, temperature: float) -> Tensor:
    """Return the natural-log probability of each row's target under softmax(logits / temperature)."""
    return torch.log_softmax(_scaled(logits_RV, temperature), dim=-1).gather(1, targets_R[:, None])[:, 0]


def row_entropies(logits_RV: Tensor, temperature: float) -> Tensor:
    """Return -sum(p ln p) per row of p = softmax(logits / temperature)."""
    logprobs_RV = torch.log_softmax(_scaled(logits_RV, temperature), dim=-1)
    # A token that cannot be has no share; its product would be 0 times -inf.
    return -(logprobs_RV.exp() * logprobs_RV.clamp(min=torch.finfo(logprobs_RV.dtype).min)).sum(dim=-1)


def grad_logits(logits_RV: Tensor, targets_R: Tensor, grads_R: Tensor, temperature: float) -> Tensor:
    """Return the gradient of sum(grads * logprobs) with respect to the logits: (onehot - p) * grad / T."""
    grads_RV = torch.softmax(_scaled(logits_RV, temperature), dim=-1).mul_(-grads_R[:, None] / temperature)
    return grads_RV.scatter_add_(1, targets_R[:, None], grads_R[:, None] / temperature)


def _scaled(logits_RV: Tensor, temperature: float) -> Tensor:
    return logits_RV if temperature == 1 else logits_RV / temperature
