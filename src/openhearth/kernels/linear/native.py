"""Linear layers on the CPU with packed weights: native/linear.h, callable under autograd.

A weight is packed once. Every output row is computed in one order of arithmetic that depends on the
instruction set alone: the same row gives the same bits alone, in any batch, at any position, with any
number of threads. Sums are float32; products of bf16 are exact in it. Per output and with u = 2^-24,
|y - exact| <= 2 (K + 2) u sum|x w| + K 2^-126 (+ the bias's rounding), then one rounding to the output's type
(Higham, Accuracy and Stability of Numerical Algorithms, 3.1; two roundings per step and flushed
denormals are those of VDPBF16PS and TDPBF16PS, Intel SDM volume 2).

Blocks (Q8_0, Q4_0, Q4_1, Q4_K; w = d q + m per group of 32 inputs): q is a whole number and exact in bf16,
scales are exact in float32, x is bf16: the same bound holds with 2 (32 + G + 4) for 2 (K + 2), G = K / 32
groups, and |d q| + |m| for |w|. An infinite x or scale gives an output that is not finite, not always the
reference's kind. llama.cpp rounds x to int8 per group of 32 or 256 instead: up to 0.4 % of the group's
largest |x| in every product.

Does not: run on other devices, or take activations of another type than float32 for float32 weights and
bfloat16 for all others.
"""

# T rows, K inputs, N outputs

from __future__ import annotations

import functools

import torch
from torch import Tensor

from openhearth.errors import UsageError
from openhearth.kernels.linear.packed import PackedWeight
from openhearth.kernels.select import NATIVE_ISAS, chosen, native

_DTYPES = (torch.bfloat16, torch.float32)


def linear(x_TK: Tensor, packed: PackedWeight, *, out_dtype: torch.dtype | None = None,
           isa: str | None = None) -> Tensor:
    """Return x @ weight.T + bias [T, N] in out_dtype, bfloat16 or float32 (default: that of x).

    Differentiable in x; the weight is frozen (`linear_trained` is for one that learns). isa: "amx",
    "avx512" or "avx2" in place of the process's choice; float32 has no AMX instructions and takes
    AVX-512 there. Raises: UsageError for shapes, a type that is not the weight's, an isa missing here.
    """
    if torch.is_grad_enabled() and x_TK.requires_grad:
        return _Linear.apply(x_TK, None, None, packed, out_dtype, isa)
    return _forward(x_TK, packed, out_dtype, isa)


def linear_trained(x_TK: Tensor, packed: PackedWeight, weight_NK: Tensor, bias_N: Tensor | None = None, *,
                   out_dtype: torch.dtype | None = None, isa: str | None = None) -> Tensor:
    """As `linear`, with gradients for the parameters that the pack was made from.

    The pack is renewed when a parameter changed in place since (an optimizer's step; a change through
    `.data` is not seen: call `repack`). Raises: as `linear` and `PackedWeight.repack`.
    """
    packed.renew(weight_NK, bias_N)
    return _Linear.apply(x_TK, weight_NK, bias_N, packed, out_dtype, isa)


class _Linear(torch.autograd.Function):
    """The native product forward; backward in torch, on the parameter or on the unpacked weight."""

    @staticmethod
    def forward(ctx, x_TK, weight_NK, bias_N, packed, out_dtype, isa):
        ctx.save_for_backward(x_TK if weight_NK is not None else None, weight_NK)
        ctx.packed, ctx.x_dtype, ctx.isa = packed, x_TK.dtype, isa
        ctx.bias_dtype = None if bias_N is None else bias_N.dtype
        return _forward(x_TK.detach(), packed, out_dtype, isa)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_TN):
        x_TK, _ = ctx.saved_tensors  # the weight is asked for so that autograd sees a change of it
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad_low_TN = grad_TN.to(ctx.x_dtype)
        grad_x_TK = grad_weight_NK = grad_bias_N = None
        if needs_x:
            grad_x_TK = linear(grad_low_TN, ctx.packed.transposed(), isa=ctx.isa)
        if needs_weight:
            grad_weight_NK = grad_low_TN.t() @ x_TK
        if needs_bias:
            grad_bias_N = grad_TN.sum(dim=0, dtype=torch.float32).to(ctx.bias_dtype)
        return grad_x_TK, grad_weight_NK, grad_bias_N, None, None, None


def _forward(x_TK: Tensor, packed: PackedWeight, out_dtype: torch.dtype | None, isa: str | None) -> Tensor:
    if x_TK.dtype != packed.dtype or x_TK.device.type != "cpu":
        raise UsageError(f"x is {x_TK.dtype} on {x_TK.device}",
                         why=f"the weight is {packed.format} on the CPU and takes {packed.dtype}")
    if x_TK.dim() != 2 or x_TK.shape[1] != packed.num_inputs:
        raise UsageError(f"x of shape {list(x_TK.shape)}", why=f"expected [rows, {packed.num_inputs}]")
    out_dtype = packed.dtype if out_dtype is None else out_dtype
    if out_dtype not in _DTYPES:
        raise UsageError(f"output type {out_dtype}", why="expected bfloat16 or float32")
    if x_TK.stride(1) != 1:
        x_TK = x_TK.contiguous()
    num_rows = x_TK.shape[0]
    out_TN = torch.empty(num_rows, packed.num_outputs, dtype=out_dtype)
    packed.native.linear(_isa_number(isa), x_TK.data_ptr(), x_TK.stride(0), packed.packed.data_ptr(),
                         0 if packed.bias_P is None else packed.bias_P.data_ptr(), out_TN.data_ptr(),
                         packed.num_outputs, num_rows, packed.num_outputs, packed.num_inputs,
                         packed.format_number, out_dtype == torch.bfloat16)
    return out_TN


@functools.cache
def _isa_number(isa: str | None) -> int:
    isa = chosen().isa if isa is None else isa
    number = NATIVE_ISAS.get(isa)
    if number is None or native().missing(number):
        why = native().missing(number) if number else f"native paths are {', '.join(NATIVE_ISAS)}"
        raise UsageError(f"a packed weight cannot be used with the kernels `{isa}`", why=why)
    return number
