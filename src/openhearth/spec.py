"""What a model is, from its `config.json` or GGUF metadata, and the arithmetic that follows from it.

Does not: import torch, read weights, or know how a forward pass is written.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class RopeSpec:
    """Rotary embedding settings; fields that a type does not use stay at their defaults."""

    type: Literal["default", "linear", "dynamic", "llama3", "yarn"] = "default"
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

    max_position: context length in tokens. dtype: the checkpoint's own ("bfloat16", "float32", ...).
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
