"""Muon: momentum whose singular values are all made about 1, for the matrices inside a network.

Source: K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024),
kellerjordan.github.io/posts/muon, with its coefficients, momentum and five iterations; the size of an
update is that of arXiv 2502.16982, equation 4, so that AdamW's learning rates and weight decay fit.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
_MOMENTUM = 0.95
_SIZE = 0.2
"""Root mean square of what AdamW adds per unit of its rate, by that paper."""


def is_for_muon(name: str, parameter: Tensor) -> bool:
    """Return whether Muon moves a parameter: a matrix that is neither the embedding nor the output."""
    return parameter.dim() == 2 and "embed_tokens" not in name and "lm_head" not in name


@torch.no_grad()
def muon_step(weight: Tensor, grad: Tensor, momentum: Tensor, *, rate: float, weight_decay: float) -> None:
    """Move a float32 matrix in place, and its momentum; Nesterov's variant."""
    momentum.lerp_(grad, 1 - _MOMENTUM)
    update = orthogonalised(grad.lerp(momentum, _MOMENTUM))
    weight.mul_(1 - rate * weight_decay)
    weight.add_(update.to(weight.dtype), alpha=-rate * _SIZE * math.sqrt(max(weight.shape)))


def orthogonalised(matrix: Tensor) -> Tensor:
    """Return a bfloat16 matrix with the singular vectors of this one and singular values of about 0.7 to 1.2.

    Newton and Schulz's iteration with an odd polynomial of degree five.
    """
    a, b, c = _COEFFICIENTS
    x = matrix.bfloat16()
    x = x.t() if matrix.shape[0] > matrix.shape[1] else x
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(_ITERATIONS):
        gram = x @ x.t()
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.t() if matrix.shape[0] > matrix.shape[1] else x
