"""The shape of a decoder and what follows from it: parameters, cache bytes, arithmetic.

Does not: read files, check tensors, or know weight formats.
"""

# D model, F feed-forward, H heads, K kv heads, E head size, V vocabulary

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

RopeType = Literal["default", "linear", "dynamic", "llama3", "yarn", "factors"]


@dataclass(frozen=True)
class RopeSpec:
    """Rotary embedding settings; fields that a type does not use stay at their defaults.

    type factors: each frequency is divided by a number stored with the weights (GGUF writes llama3
    scaling this way). original_max_position: context the frequencies were trained for; a shorter
    context chosen by the user changes `ModelSpec.max_position`, never this one.
    Example: ``RopeSpec("linear", theta=10000.0, factor=4.0)``.
    """

    type: RopeType = "default"
    theta: float = 10000.0
    factor: float = 1.0
    original_max_position: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True


@dataclass(frozen=True)
class ModelSpec:
    """Shape of a decoder.

    max_position: context length in tokens. dtype: the checkpoint's own ("bfloat16", "float32",
    "float16"; a block type such as "q4_1" when quantised). is_tied: embedding and output share one
    matrix. Example: ``ModelSpec("llama", 128256, 4096, 32, 32, 8, 128, 14336, 8192, 1e-5,
    RopeSpec(theta=500000.0), False, False, False, "bfloat16").num_parameters == 8030261248``.
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    max_position: int
    rms_norm_eps: float
    rope: RopeSpec
    is_tied: bool
    has_attention_bias: bool
    has_mlp_bias: bool
    dtype: str

    @property
    def num_parameters(self) -> int:
        """Trainable numbers; a tied output matrix counts once."""
        matrices = self.num_layers * self._layer_matrix_size + self.vocab_size * self.hidden_size * (
            1 if self.is_tied else 2)
        norms = (2 * self.num_layers + 1) * self.hidden_size
        biases = 0
        if self.has_attention_bias:
            biases += (self.num_heads + 2 * self.num_kv_heads) * self.head_dim + self.hidden_size
        if self.has_mlp_bias:
            biases += 2 * self.intermediate_size + self.hidden_size
        return matrices + norms + self.num_layers * biases

    def kv_bytes_per_token(self, bytes_per_number: float = 2) -> int:
        """Cache bytes that one token holds over all layers: a key and a value per kv head.

        bytes_per_number: an int8 cache has 1 + 2 / 32, its scales included, where 32 divides the head size.
        """
        return round(2 * self.num_layers * self.num_kv_heads * self.head_dim * bytes_per_number)

    def flops_per_token(self, context: int) -> int:
        """Floating-point operations of one token's forward pass, logits included.

        context: keys the token attends to. Two per weight of every matrix it is multiplied with, and
        4 * H * E per key and layer (scores and weighted sum). Norms, rotary embedding, softmax and
        the embedding look-up are left out. Source: arXiv 2001.08361 section 2.1; 2204.02311 appendix B.
        """
        matrices = self.num_layers * self._layer_matrix_size + self.vocab_size * self.hidden_size
        attention = 4 * self.num_layers * self.num_heads * self.head_dim * context
        return 2 * matrices + attention

    @property
    def _layer_matrix_size(self) -> int:
        attention = 2 * (self.num_heads + self.num_kv_heads) * self.head_dim * self.hidden_size
        return attention + 3 * self.hidden_size * self.intermediate_size
