"""Native forward, reference backward: the gradient of an operation, computed from its inputs again.

The gradient is that of the reference at the same inputs; it needs no memory of the forward but those.

Does not: give gradients of gradients.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Operation = Callable[..., Tensor | tuple[Tensor, ...]]


def call(native: Operation, reference: Operation, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
    """Return native(*inputs), differentiable through reference(*inputs) where autograd asks for it."""
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs):
        return _Recomputed.apply(native, reference, *inputs)
    return native(*inputs)


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, native, reference, *inputs):
        ctx.save_for_backward(*inputs)
        ctx.reference = reference
        return native(*inputs)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *grads):
        needed = ctx.needs_input_grad[2:]
        with torch.enable_grad():
            inputs = [tensor.detach().requires_grad_(is_needed)
                      for tensor, is_needed in zip(ctx.saved_tensors, needed, strict=True)]
            outputs = ctx.reference(*inputs)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        wanted = [tensor for tensor, is_needed in zip(inputs, needed, strict=True) if is_needed]
        found = iter(torch.autograd.grad(outputs, wanted, grads))
        return None, None, *(next(found) if is_needed else None for is_needed in needed)
