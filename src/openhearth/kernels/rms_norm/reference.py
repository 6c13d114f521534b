"""Root-mean-square norm in plain torch, float32 inside, one rounding. Source: arXiv 1910.07467."""

# T rows, D numbers of a row

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def rms_norm(x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """Return x / sqrt(mean(x^2) + eps) * weight per row, in the type of the weight."""
    if x_TD.dtype == weight_D.dtype:
        return functional.rms_norm(x_TD, weight_D.shape, weight_D, eps)
    return functional.rms_norm(x_TD, weight_D.shape, weight_D.to(x_TD.dtype), eps).to(weight_D.dtype)


def add_rms_norm(x_TD: Tensor, delta_TD: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return h = x + delta, rounded to their type, and the norm of h."""
    sum_TD = x_TD + delta_TD
    return sum_TD, rms_norm(sum_TD, weight_D, eps)
