"""Llama: RMSNorm, rotary grouped-query attention, gated feed-forward; tied or separate embeddings.

One forward over packed tokens serves prefill, decode and training: what differs is the AttnInput.
Parameter names are those of Hugging Face checkpoints, so `state_dict` is what gets saved; a tied
output has no parameter of its own. Source: arXiv 2302.13971, section 2.2; checked against
transformers 5.23 (`LlamaForCausalLM`).

Does not: sample, choose positions, or manage the cache; no dropout.
"""

# T packed tokens, R rows whose logits are wanted, D model, F feed-forward, H heads, K kv heads,
# C = K * E, E head size, V vocabulary

from __future__ import annotations

import torch
from torch import Tensor, nn

from openhearth.kernels import attention
from openhearth.kernels.attention.inputs import AttnInput
from openhearth.kernels.embedding import embed
from openhearth.kernels.glu import glu
from openhearth.kernels.lora import AdapterRows
from openhearth.kernels.rms_norm import add_rms_norm, rms_norm
from openhearth.kernels.rope import compute_rotation
from openhearth.kernels.rope.reference import Rotation, inverse_frequencies
from openhearth.models.linear import Embedding, Linear
from openhearth.models.lora import Adapter
from openhearth.spec import ModelSpec

RESIDUAL = torch.float32
"""Type of the residual stream. In bfloat16 every layer's sum would round it once more, to 8 bits."""

_GGUF_NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}


class RmsNorm(nn.Module):
    """Root-mean-square norm, computed in float32. Source: arXiv 1910.07467."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.eps = eps

    def add(self, x_TD: Tensor, delta_TD: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return x + delta and the norm of it; without a delta, x and its norm."""
        if delta_TD is None:
            return x_TD, rms_norm(x_TD, self.weight, self.eps)
        return add_rms_norm(x_TD, delta_TD, self.weight, self.eps)


class Attention(nn.Module):
    """Grouped-query attention of one layer."""

    def __init__(self, spec: ModelSpec, layer: int) -> None:
        super().__init__()
        self.layer = layer
        width, has_bias = spec.hidden_size, spec.has_attention_bias
        self.q_proj = Linear(width, spec.num_heads * spec.head_dim, bias=has_bias)
        self.k_proj = Linear(width, spec.num_kv_heads * spec.head_dim, bias=has_bias)
        self.v_proj = Linear(width, spec.num_kv_heads * spec.head_dim, bias=has_bias)
        self.o_proj = Linear(spec.num_heads * spec.head_dim, width, bias=has_bias)

    def forward(self, x_TD: Tensor, rotation: Rotation, plan: attention.Plan,
                adapters: AdapterRows | None) -> Tensor:
        q_TD, k_TC, v_TC = (project(x_TD, adapters) for project in (self.q_proj, self.k_proj, self.v_proj))
        return self.o_proj(attention.attend(plan, self.layer, q_TD, k_TC, v_TC, rotation), adapters, RESIDUAL)


class FeedForward(nn.Module):
    """Gated feed-forward, SwiGLU. Source: arXiv 2002.05202."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.gate_proj = Linear(spec.hidden_size, spec.intermediate_size, bias=spec.has_mlp_bias)
        self.up_proj = Linear(spec.hidden_size, spec.intermediate_size, bias=spec.has_mlp_bias)
        self.down_proj = Linear(spec.intermediate_size, spec.hidden_size, bias=spec.has_mlp_bias)

    def forward(self, x_TD: Tensor, adapters: AdapterRows | None) -> Tensor:
        gate_TF, up_TF = self.gate_proj(x_TD, adapters), self.up_proj(x_TD, adapters)
        return self.down_proj(glu(gate_TF, up_TF), adapters, RESIDUAL)


class Layer(nn.Module):
    """One decoder layer, norms before each half."""

    def __init__(self, spec: ModelSpec, layer: int) -> None:
        super().__init__()
        self.self_attn = Attention(spec, layer)
        self.mlp = FeedForward(spec)
        self.input_layernorm = RmsNorm(spec.hidden_size, spec.rms_norm_eps)
        self.post_attention_layernorm = RmsNorm(spec.hidden_size, spec.rms_norm_eps)

    def forward(self, hidden_TD: Tensor, delta_TD: Tensor | None, rotation: Rotation, plan: attention.Plan,
                adapters: AdapterRows | None) -> tuple[Tensor, Tensor]:
        """Return the residual stream and what the feed-forward adds to it, a sum left to the next norm."""
        hidden_TD, normed_TD = self.input_layernorm.add(hidden_TD, delta_TD)
        attended_TD = self.self_attn(normed_TD, rotation, plan, adapters)
        hidden_TD, normed_TD = self.post_attention_layernorm.add(hidden_TD, attended_TD)
        return hidden_TD, self.mlp(normed_TD, adapters)


class Body(nn.Module):
    """Everything but the output matrix; exists for the `model.` in parameter names."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.embed_tokens = Embedding(spec.vocab_size, spec.hidden_size,
                                      _weight=torch.empty(spec.vocab_size, spec.hidden_size))
        self.layers = nn.ModuleList(Layer(spec, layer) for layer in range(spec.num_layers))
        self.norm = RmsNorm(spec.hidden_size, spec.rms_norm_eps)


class Llama(nn.Module):
    """A Llama decoder. Build it on the meta device and let `load_model` bring the weights."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.adapters: dict[str, Adapter] = {}
        self.model = Body(spec)
        if not spec.is_tied:
            self.lm_head = Linear(spec.hidden_size, spec.vocab_size, bias=False)
        if spec.rope.type == "factors":
            self.register_buffer("rope_factors", torch.empty(spec.head_dim // 2))
        self._frequencies_F: Tensor | None = None

    @property
    def dtype(self) -> torch.dtype:
        return self.model.norm.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.model.norm.weight.device

    def forward(self, token_ids_T: Tensor, positions_T: Tensor, attn: AttnInput,
                adapters: AdapterRows | None = None) -> Tensor:
        """Return the last hidden states [T, D], after the final norm.

        token_ids_T, positions_T: int64 [T], positions counted from 0 in each sequence. With a cache
        the pack's keys and values are written into it. adapters: rows that take one; None for none.
        """
        hidden_TD, delta_TD = embed(token_ids_T, self.model.embed_tokens.table, RESIDUAL), None
        rotation = compute_rotation(self.spec.rope, self._frequencies(), positions_T)
        plan = attention.plan_attention(attn, dtype=self.dtype, device=self.device)
        for layer in self.model.layers:
            hidden_TD, delta_TD = layer(hidden_TD, delta_TD, rotation, plan, adapters)
        return self.model.norm.add(hidden_TD, delta_TD)[1]

    def logits(self, hidden_RD: Tensor) -> Tensor:
        """Return float32 logits [R, V] of the rows a caller picked from `forward`."""
        if self.spec.is_tied:
            return self.model.embed_tokens.project(hidden_RD)
        return self.lm_head(hidden_RD, out_dtype=torch.float32)

    @property
    def head_bytes(self) -> int:
        """Bytes of the output matrix, as the kernels read it."""
        if self.spec.is_tied:
            return self.model.embed_tokens.num_bytes
        head = self.lm_head
        return head.weight.nbytes if head.packed is None else head.packed.packed.nbytes

    def _frequencies(self) -> Tensor:
        """Kept outside the buffers: casting the model must not round them."""
        if self._frequencies_F is None or self._frequencies_F.device != self.device:
            factors_F = getattr(self, "rope_factors", None)
            computed_F = inverse_frequencies(self.spec.rope, self.spec.head_dim, factors_F)
            self._frequencies_F = computed_F.to(self.device)
        return self._frequencies_F


def gguf_name(name: str) -> str:
    """Return a parameter's name in GGUF files.

    Example: ``gguf_name("model.layers.3.mlp.up_proj.weight") == "blk.3.ffn_up.weight"``.
    """
    if name == "rope_factors":
        return "rope_freqs.weight"
    stem, kind = name.rsplit(".", 1)
    if stem.startswith("model.layers."):
        layer, rest = stem.removeprefix("model.layers.").split(".", 1)
        return f"blk.{layer}.{_GGUF_NAMES[rest]}.{kind}"
    return f"{_GGUF_NAMES[stem]}.{kind}"


def gguf_rotary_heads(name: str, spec: ModelSpec) -> int | None:
    """Return the number of heads when GGUF keeps a parameter's rows in interleaved rotary order.

    Llama's Q and K (weight and bias) are stored with each pair side by side: [heads, E / 2, 2]
    instead of [heads, 2, E / 2]. Source: `LlamaModel.permute` of llama.cpp's converter.
    """
    if ".self_attn.q_proj." in name:
        return spec.num_heads
    return spec.num_kv_heads if ".self_attn.k_proj." in name else None
