"""Feed-forward layers of many experts, of which a router chooses a few for each token.

How to use it: give the spec a `MoeSpec` and take `MoeLayer` for a layer. Its feed-forward, `MoeFeedForward`,
has the parameters `gate.weight` (and the buffer `gate.e_score_correction_bias`, float32, where the choice is
corrected), `experts.N.gate_proj`, `up_proj`, `down_proj`, and the same three of `shared_experts`. Where the
names of a checkpoint differ, make a module of `Router` and `Experts` with those names:
``experts(x_TD, router.choose(x_TD, adapters), adapters)``.

The tokens of one expert are multiplied together. What a token gets does not depend on the others: a row of a
product has the same bits in any pack, and a token's sum goes through its experts in ascending order. With
native kernels, frozen weights and no adapters that is one call of the same bits: `kernels/experts/native.py`.

Does not: balance the load of experts, or drop tokens: every chosen expert computes.
"""

# T packed tokens, D model, E experts, C chosen of them, P = T * C, N rows of an expert

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from openhearth.kernels import routing
from openhearth.kernels.experts import ExpertActivation, PackedExperts, add_experts
from openhearth.kernels.lora import AdapterRows
from openhearth.kernels.traced import Traced
from openhearth.models.layers import RESIDUAL, FeedForward, Layer
from openhearth.models.linear import Linear
from openhearth.spec import ModelSpec


class Choice(NamedTuple):
    """The experts of each token, ascending, and the float32 weights of what they return.

    Example: ``Choice(tensor([[0, 3]]), tensor([[0.25, 0.75]]))``.
    """

    experts_TC: Tensor
    weights_TC: Tensor


class Router(Linear):
    """Logits of all experts for each token, in float32, and the choice among them (`kernels/routing/`)."""

    def __init__(self, spec: ModelSpec, *, bias: bool = False) -> None:
        super().__init__(spec.hidden_size, spec.moe.num_experts, bias=bias)
        self.moe = spec.moe
        if self.moe.has_bias:
            self.register_buffer("e_score_correction_bias",
                                 torch.empty(self.moe.num_experts, dtype=torch.float32))

    def choose(self, x_TD: Tensor, adapters: AdapterRows | None) -> Choice:
        """Return the experts of each row."""
        corrections_E = self.e_score_correction_bias if self.moe.has_bias else None
        return Choice(*routing.choose(self(x_TD, adapters, torch.float32), self.moe, corrections_E))


class Experts(nn.ModuleList):
    """The experts of one layer. build: makes one, to be called as `FeedForward.forward`.

    matrices: names of an expert's gate, up and down, a gated feed-forward and nothing else. activation: of
    that feed-forward, None for the spec's.
    """

    def __init__(self, spec: ModelSpec, build: Callable[[], nn.Module],
                 matrices: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"),
                 activation: ExpertActivation | None = None) -> None:
        super().__init__(build() for _ in range(spec.moe.num_experts))
        self.activation = spec.activation if activation is None else activation
        self.matrices = matrices
        self._layers = [[expert.get_submodule(name) for name in matrices] for expert in self]
        self._packed: PackedExperts | None = None

    def forward(self, x_TD: Tensor, choice: Choice, adapters: AdapterRows | None) -> Tensor:
        """Return the weighted sum of what each row's experts return, float32 [T, D]."""
        if isinstance(x_TD, Traced):
            return add_experts(x_TD, *choice, self.packed_together(), self.activation)
        needs_grad = torch.is_grad_enabled() and (x_TD.requires_grad or choice.weights_TC.requires_grad)
        if not needs_grad and (packed := self._for_one_call(choice, adapters)) is not None:
            return add_experts(x_TD, *choice, packed, self.activation)
        return self._add_one_by_one(x_TD, choice, adapters)

    @property
    def has_adapters(self) -> bool:
        """Whether an adapter changes an expert."""
        return any(any(layer.lora) for layers in self._layers for layer in layers)

    def packed_together(self) -> PackedExperts | None:
        """Return the experts for one call, as they are packed now; None where they are not alike."""
        if any(layer.packed is None for layers in self._layers for layer in layers):
            return None
        return PackedExperts.of(tuple(layer.packed for layer in layers) for layers in self._layers)

    def _for_one_call(self, choice: Choice, adapters: AdapterRows | None) -> PackedExperts | None:
        """The experts as they are now, None where one native call does not have their bits."""
        chosen = set(choice.experts_TC.flatten().tolist())
        if adapters is not None and adapters.ranges and any(
                any(layer.lora) for expert in chosen for layer in self._layers[expert]):
            return None
        if any(layer.weight is not None for expert in chosen for layer in self._layers[expert]):
            return None  # what learns is packed again where it is used
        if self._packed is None or any(
                layer.packed is not pack for expert in chosen
                for layer, pack in zip(self._layers[expert], self._packed.experts[expert], strict=True)):
            self._packed = self.packed_together()
        return self._packed

    def _add_one_by_one(self, x_TD: Tensor, choice: Choice, adapters: AdapterRows | None) -> Tensor:
        chosen_P = choice.experts_TC.flatten()
        order_P = chosen_P.argsort(stable=True)
        tokens_P = order_P // choice.experts_TC.shape[1]
        weights_P1 = choice.weights_TC.flatten().index_select(0, order_P)[:, None]
        counts = chosen_P.bincount(minlength=len(self)).tolist()
        gathered_PD = x_TD.index_select(0, tokens_P)
        parts = zip(self, *(one.split(counts) for one in (gathered_PD, tokens_P, weights_P1)), strict=True)
        total_TD = torch.zeros(x_TD.shape, dtype=RESIDUAL, device=x_TD.device)
        for expert, rows_PD, tokens, weights in parts:
            if len(tokens):
                taken = None if adapters is None else adapters.of_rows(tokens.tolist())
                total_TD = _AddWeighted.apply(total_TD, expert(rows_PD, taken), weights, tokens)
        return total_TD


class _AddWeighted(torch.autograd.Function):
    """Add rows [N, D] times weights [N, 1] to the rows of a total that tokens [N] names, in place.

    Unlike `index_add_` it keeps the rows for the backward pass once, not their products besides.
    """

    @staticmethod
    def forward(ctx, total_TD, rows_ND, weights_N1, tokens_N):
        ctx.save_for_backward(rows_ND, weights_N1, tokens_N)
        ctx.mark_dirty(total_TD)
        return total_TD.index_add_(0, tokens_N, rows_ND * weights_N1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_TD):
        rows_ND, weights_N1, tokens_N = ctx.saved_tensors
        grad_ND = grad_TD.index_select(0, tokens_N)
        return grad_TD, grad_ND * weights_N1, (grad_ND * rows_ND).sum(-1, keepdim=True), None


class MoeFeedForward(nn.Module):
    """Router, experts and, where the spec has them, experts that every token passes through."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.gate = Router(spec)
        self.experts = Experts(spec, lambda: FeedForward(spec, spec.moe.expert_size))
        if spec.moe.shared_size:
            self.shared_experts = FeedForward(spec, spec.moe.shared_size)
        self.has_shared = spec.moe.shared_size > 0

    def forward(self, x_TD: Tensor, adapters: AdapterRows | None) -> Tensor:
        """Return what the layer's feed-forward adds to the residual stream [T, D]."""
        out_TD = self.experts(x_TD, self.gate.choose(x_TD, adapters), adapters)
        return out_TD + self.shared_experts(x_TD, adapters) if self.has_shared else out_TD


class MoeLayer(Layer):
    """A decoder layer whose feed-forward is made of experts, from the spec's first such layer on."""

    def __init__(self, spec: ModelSpec, layer: int) -> None:
        super().__init__(spec, layer)
        if spec.has_experts(layer):
            self.mlp = MoeFeedForward(spec)
