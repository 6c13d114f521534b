"""DeepSeek V2, V3, R1: latent attention, experts after the first layers, and a layer that drafts.

Source: arXiv 2405.04434, section 2; 2412.19437, sections 2.1 and 2.2; checked against transformers 5.23
(`DeepseekV2ForCausalLM`, `DeepseekV3ForCausalLM`), which has no layer for multi-token prediction. What that
layer takes of the model the report leaves open: it is what the final norm returns, and for tokens further
ahead what its own norm returns, as in SGLang (`deepseek_nextn.py`) and TensorRT-LLM; vLLM (`deepseek_mtp.py`)
takes the same of the model, and of the layer what it has before its norm.
"""

# T packed tokens, D model

from __future__ import annotations

import torch
from torch import Tensor, nn

from openhearth.kernels import attention
from openhearth.kernels.attention.inputs import AttnInput
from openhearth.kernels.embedding import embed
from openhearth.models.architecture import Architecture
from openhearth.models.decoder import Decoder
from openhearth.models.experts import MoeLayer
from openhearth.models.latent import LatentAttention
from openhearth.models.layers import RESIDUAL, Pass, RmsNorm
from openhearth.models.linear import Linear
from openhearth.spec import ModelSpec


class DeepseekLayer(MoeLayer):
    """One layer with latent attention."""

    def __init__(self, spec: ModelSpec, layer: int) -> None:
        super().__init__(spec, layer)
        self.self_attn = LatentAttention(spec, layer)


class MtpLayer(DeepseekLayer):
    """The layer for multi-token prediction: one like the others, behind what joins two tokens into a row."""

    def __init__(self, spec: ModelSpec, layer: int) -> None:
        super().__init__(spec, layer)
        width, eps = spec.hidden_size, spec.rms_norm_eps
        self.enorm, self.hnorm = RmsNorm(width, eps), RmsNorm(width, eps)
        self.eh_proj = Linear(2 * width, width, bias=False)
        self.shared_head = nn.Module()
        self.shared_head.norm = RmsNorm(width, eps)

    def predict(self, embedded_TD: Tensor, hidden_TD: Tensor, shared: Pass) -> Tensor:
        """Return hidden states [T, D] made of those of tokens and of the embeddings of the next ones."""
        both_TD = torch.cat((self.enorm(embedded_TD), self.hnorm(hidden_TD)), -1)
        out_TD, delta_TD = self(self.eh_proj(both_TD, None, RESIDUAL), None, shared)
        return self.shared_head.norm.add(out_TD, delta_TD)[1]


class Deepseek(Decoder):
    """A decoder of such layers; with `spec.has_mtp` the last of `model.layers` is that for drafting."""

    layer_type = DeepseekLayer

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec)
        if spec.has_mtp:
            self.model.layers.append(MtpLayer(spec, spec.num_layers))

    def look_ahead(self, hidden_TD: Tensor, next_ids_T: Tensor, positions_T: Tensor,
                   attn: AttnInput) -> Tensor:
        """Return hidden states [T, D] whose `logits` are of the token that follows the next one.

        hidden_TD: what `forward` returned for the tokens at these positions, or this method for the tokens
        before them. next_ids_T: the tokens that follow them. attn: as for `forward`; with a cache, keys and
        values are written to that of the layer after the model's own.
        """
        embedded_TD = embed(next_ids_T, self.model.embed_tokens.table, RESIDUAL)
        plan = attention.plan_attention(attn, dtype=self.dtype, device=self.device)
        shared = Pass(self._rotation(self.spec.rope, positions_T), plan, None)
        return self.model.layers[-1].predict(embedded_TD, hidden_TD, shared)


ARCHITECTURE = Architecture(Deepseek, gguf_names={
    "self_attn.q_a_proj": "attn_q_a", "self_attn.q_a_layernorm": "attn_q_a_norm",
    "self_attn.q_b_proj": "attn_q_b", "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa",
    "self_attn.indexer.wq_b": "indexer.attn_q_b", "self_attn.indexer.wk": "indexer.attn_k",
    "self_attn.indexer.k_norm": "indexer.k_norm", "self_attn.indexer.weights_proj": "indexer.proj",
    "self_attn.kv_a_layernorm": "attn_kv_a_norm", "self_attn.kv_b_proj": "attn_kv_b",
    "eh_proj": "nextn.eh_proj", "enorm": "nextn.enorm", "hnorm": "nextn.hnorm",
    "shared_head.norm": "nextn.shared_head_norm",
})
