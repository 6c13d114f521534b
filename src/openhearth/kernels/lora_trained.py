"""A frozen linear layer with a low-rank pair that learns, as one operation.

The forward is that of the layer and the pair one after the other, bit for bit: base rounded to the output's
type, plus scale * B(A(x)) in float32, rounded once. The backward pass never holds a float32 tensor of the
layer's width. Derivatives: with y = W x + s B A x and g = dL/dy, dB = s g h', h = A x, dA = s (B' g) x',
dx = W' g + s A' (B' g).

Does not: give a gradient to W, or take a pack of several adapters.
"""

# T rows, I inputs, O outputs, R rank

from __future__ import annotations

import torch
from torch import Tensor

from openhearth.kernels.linear.native import PackedWeight, add_linear, linear


class TrainedPair:
    """A [R, I] and B [O, R] with their packed copies, renewed when the parameters changed in place.

    Example: ``adapted(x_TI, packed, TrainedPair(a_RI, packed_a, b_OR, packed_b, 2.0), None)``.
    """

    def __init__(self, a_RI: Tensor, packed_a: PackedWeight, b_OR: Tensor, packed_b: PackedWeight,
                 scale: float) -> None:
        self.a_RI, self.packed_a, self.b_OR, self.packed_b, self.scale = a_RI, packed_a, b_OR, packed_b, scale


def adapted(x_TI: Tensor, base: PackedWeight, pair: TrainedPair, out_dtype: torch.dtype | None) -> Tensor:
    """Return base(x) + scale * B(A(x)), [T, O] in out_dtype (None: that of x). Raises: as `linear`."""
    for weight, packed in ((pair.a_RI, pair.packed_a), (pair.b_OR, pair.packed_b)):
        packed.renew(weight, None)
    return _Adapted.apply(x_TI, pair.a_RI, pair.b_OR, base, pair, out_dtype)


class _Adapted(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_TI, a_RI, b_OR, base, pair, out_dtype):
        hidden_TR = linear(x_TI, pair.packed_a)
        out_TO = linear(x_TI, base, out_dtype=out_dtype)
        add_linear(out_TO, hidden_TR, pair.packed_b, pair.scale)
        ctx.save_for_backward(x_TI, hidden_TR, a_RI, b_OR)
        ctx.base, ctx.packed_a, ctx.scale = base, pair.packed_a, pair.scale
        return out_TO

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_TO):
        x_TI, hidden_TR, _, b_OR = ctx.saved_tensors
        grad_TO = grad_TO.to(x_TI.dtype)
        inner_TR = (grad_TO @ b_OR).mul_(ctx.scale)
        grad_a_RI = inner_TR.t() @ x_TI if ctx.needs_input_grad[1] else None
        grad_b_OR = (grad_TO.t() @ hidden_TR).mul_(ctx.scale) if ctx.needs_input_grad[2] else None
        grad_x_TI = None
        if ctx.needs_input_grad[0]:
            grad_x_TI = linear(grad_TO, ctx.base.transposed())
            add_linear(grad_x_TI, inner_TR, ctx.packed_a.transposed())
        return grad_x_TI, grad_a_RI, grad_b_OR, None, None, None
