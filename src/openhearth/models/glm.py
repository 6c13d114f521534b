"""GLM-4 of 2024: Llama's layers with rotary pairs side by side, in half of a head, and a fused gate.

Source: arXiv 2406.12793, section 2; checked against transformers 5.23 (`GlmForCausalLM`).
"""

# T packed tokens, E head size

from __future__ import annotations

import torch
from torch import Tensor

from openhearth.kernels.lora import AdapterRows
from openhearth.models.architecture import Architecture
from openhearth.models.decoder import Decoder
from openhearth.models.fused import FusedFeedForward
from openhearth.models.layers import Attention, Layer
from openhearth.spec import ModelSpec


class InterleavedAttention(Attention):
    """Attention whose rotation turns neighbours, numbers 2i and 2i + 1 of a head, instead of i and i + E / 2.

    Queries and keys are put into half-split order before the kernels: their products are the same sums, in
    another order.
    """

    def __init__(self, spec: ModelSpec, layer: int) -> None:
        super().__init__(spec, layer)
        self.num_turned = spec.num_turned

    def project(self, x_TD: Tensor, adapters: AdapterRows | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries [T, D], keys and values [T, C], the first two in half-split order."""
        q_TD, k_TC, v_TC = super().project(x_TD, adapters)
        return self._half_split(q_TD), self._half_split(k_TC), v_TC

    def _half_split(self, x_TD: Tensor) -> Tensor:
        heads_THE = x_TD.unflatten(1, (-1, self.head_dim))
        turned_THE = heads_THE[..., :self.num_turned].unflatten(2, (-1, 2)).transpose(2, 3).flatten(2)
        return torch.cat((turned_THE, heads_THE[..., self.num_turned:]), 2).flatten(1)


class GlmLayer(Layer):
    """One layer of GLM-4."""

    def __init__(self, spec: ModelSpec, layer: int) -> None:
        super().__init__(spec, layer)
        self.self_attn, self.mlp = InterleavedAttention(spec, layer), FusedFeedForward(spec)


class Glm(Decoder):
    """A decoder of GLM-4's layers."""

    layer_type = GlmLayer


ARCHITECTURE = Architecture(Glm, gguf_names={"mlp.gate_up_proj": "ffn_up"})
