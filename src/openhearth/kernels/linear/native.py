"""Linear layers on the CPU with packed weights: native/linear.h, callable under autograd.

A weight is packed once. Every output row is computed in one order of arithmetic that depends on the
instruction set alone: the same row gives the same bits alone, in any batch, at any position, with any
number of threads. Sums are float32; products of bf16 are exact in it. Per output and with u = 2^-24,
|y - exact| <= 2 (K + 2) u sum|x w| + K 2^-126 (+ the bias's rounding), then one rounding to the output's type
(Higham, Accuracy and Stability of Numerical Algorithms, 3.1; two roundings per step and flushed
denormals are those of VDPBF16PS and TDPBF16PS, Intel SDM volume 2).

Does not: run on other devices, or take activations of another type than the weight.
"""

# T rows, K inputs, N outputs, P outputs padded to whole panels

from __future__ import annotations

import functools

import torch
from torch import Tensor

from openhearth.errors import Unsupported, UsageError
from openhearth.kernels.memory import take_bytes
from openhearth.kernels.select import NATIVE_ISAS, chosen, native

PANEL = 32
_DTYPES = (torch.bfloat16, torch.float32)


class PackedWeight:
    """A weight [N, K] and its bias, in the kernels' own layout.

    `packed` holds the bytes (zero-padded to 32 outputs and, bf16, to 32 inputs); `bias_P` is float32
    or None. The row-major original is not kept. Example: ``PackedWeight(torch.eye(3), torch.ones(3))``.
    """

    def __init__(self, weight_NK: Tensor, bias_N: Tensor | None = None) -> None:
        """Pack a CPU weight, bfloat16 or float32, and a bias of either type.

        Raises: Unsupported for another type or device, or without native kernels; UsageError for shapes.
        """
        self.native = native()
        if self.native is None or self.native.missing(NATIVE_ISAS["avx2"]):
            raise Unsupported("this installation has no native kernels for this CPU",
                              hint="HEARTH_ISA=reference")
        if weight_NK.dim() != 2:
            raise UsageError(f"weight of shape {list(weight_NK.shape)}", why="expected [outputs, inputs]")
        self.dtype = _checked(weight_NK)
        self.num_outputs, self.num_inputs = weight_NK.shape
        self.is_bf16 = self.dtype == torch.bfloat16
        self.packed = take_bytes(self.native.packed_bytes(self.num_outputs, self.num_inputs, self.is_bf16))
        self.bias_P: Tensor | None = None
        self.repack(weight_NK, bias_N)

    def repack(self, weight_NK: Tensor, bias_N: Tensor | None = None) -> None:
        """Replace the contents by a weight of the same shape and type. Raises: as the constructor."""
        if _checked(weight_NK) != self.dtype or weight_NK.shape != (self.num_outputs, self.num_inputs):
            raise UsageError(f"weight of shape {list(weight_NK.shape)} and type {weight_NK.dtype}",
                             why=f"the pack holds [{self.num_outputs}, {self.num_inputs}] of {self.dtype}")
        if bias_N is not None and bias_N.shape != (self.num_outputs,):
            raise UsageError(f"bias of shape {list(bias_N.shape)}", why=f"expected [{self.num_outputs}]")
        rows_NK = weight_NK.detach()
        rows_NK = rows_NK if rows_NK.stride(1) == 1 else rows_NK.contiguous()
        self.native.pack_weight(rows_NK.data_ptr(), rows_NK.stride(0), self.num_outputs, self.num_inputs,
                                self.is_bf16, self.packed.data_ptr())
        if bias_N is not None:
            self.bias_P = torch.zeros((self.num_outputs + PANEL - 1) // PANEL * PANEL)
            self.bias_P[:self.num_outputs] = bias_N.detach()
        else:
            self.bias_P = None
        self.versions = _versions(weight_NK, bias_N)

    def renew(self, weight_NK: Tensor, bias_N: Tensor | None) -> None:
        """Repack when a parameter changed in place since; as `linear_trained` says. Raises: as `repack`."""
        versions = _versions(weight_NK, bias_N)
        if versions != self.versions or None in versions:
            self.repack(weight_NK, bias_N)

    def unpack(self) -> Tensor:
        """Return the weight [N, K] as it was given, bit for bit."""
        weight_NK = torch.empty(self.num_outputs, self.num_inputs, dtype=self.dtype)
        self.native.unpack_weight(self.packed.data_ptr(), self.num_outputs, self.num_inputs, self.is_bf16,
                                  weight_NK.data_ptr())
        return weight_NK


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
        ctx.packed, ctx.x_dtype = packed, x_TK.dtype
        ctx.bias_dtype = None if bias_N is None else bias_N.dtype
        return _forward(x_TK.detach(), packed, out_dtype, isa)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_TN):
        x_TK, weight_NK = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad_low_TN = grad_TN.to(ctx.x_dtype)
        grad_x_TK = grad_weight_NK = grad_bias_N = None
        if needs_x:
            grad_x_TK = grad_low_TN @ (ctx.packed.unpack() if weight_NK is None else weight_NK)
        if needs_weight:
            grad_weight_NK = grad_low_TN.t() @ x_TK
        if needs_bias:
            grad_bias_N = grad_TN.sum(dim=0, dtype=torch.float32).to(ctx.bias_dtype)
        return grad_x_TK, grad_weight_NK, grad_bias_N, None, None, None


def _forward(x_TK: Tensor, packed: PackedWeight, out_dtype: torch.dtype | None, isa: str | None) -> Tensor:
    if x_TK.dtype != packed.dtype or x_TK.device.type != "cpu":
        raise UsageError(f"x is {x_TK.dtype} on {x_TK.device}",
                         why=f"the weight is {packed.dtype} on the CPU")
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
                         packed.num_outputs, num_rows, packed.num_outputs, packed.num_inputs, packed.is_bf16,
                         out_dtype == torch.bfloat16)
    return out_TN


@functools.cache
def _isa_number(isa: str | None) -> int:
    isa = chosen().isa if isa is None else isa
    number = NATIVE_ISAS.get(isa)
    if number is None or native().missing(number):
        why = native().missing(number) if number else f"native paths are {', '.join(NATIVE_ISAS)}"
        raise UsageError(f"a packed weight cannot be used with the kernels `{isa}`", why=why)
    return number


def _checked(weight_NK: Tensor) -> torch.dtype:
    if weight_NK.dtype not in _DTYPES or weight_NK.device.type != "cpu" or weight_NK.layout != torch.strided:
        raise Unsupported(f"native kernels cannot pack {weight_NK.dtype} on {weight_NK.device}",
                          why="expected bfloat16 or float32 on the CPU")
    return weight_NK.dtype


def _versions(weight_NK: Tensor, bias_N: Tensor | None) -> tuple[object, ...]:
    """What changes when a parameter is replaced or written; None where torch keeps no count."""
    return tuple(None if tensor.is_inference() else (tensor.data_ptr(), tensor._version)
                 for tensor in (weight_NK, bias_N) if tensor is not None)
