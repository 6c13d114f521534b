"""ModelSpec from GGUF metadata.

Keys: GGUF specification, section "LLM", as written by gguf-py 0.19 (`gguf/constants.py`). Whatever
metadata leaves to the tensors (vocabulary, tying, biases, norms of heads, rotary factors) is read from their
names and shapes.
"""

from __future__ import annotations

import math
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from openhearth.errors import BadFile, Unsupported
from openhearth.formats import map_tensor
from openhearth.formats.records import Checkpoint, TensorEntry
from openhearth.spec.architectures import ArchitectureRow, find_row_of_gguf
from openhearth.spec.architectures.rotary import yarn_factor
from openhearth.spec.fields import Fields
from openhearth.spec.records import ModelSpec, RopeSpec

_READ = {
    "block_count", "context_length", "embedding_length", "feed_forward_length", "vocab_size",
    "attention.head_count", "attention.head_count_kv", "attention.layer_norm_rms_epsilon",
    "attention.key_length", "attention.value_length", "rope.dimension_count", "rope.freq_base",
    "rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_context_length", "rope.scale_linear",
    "rope.scaling.attn_factor", "rope.scaling.yarn_attn_factor", "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
}
_REQUIRED = {
    "attention.causal": (True,), "expert_count": (0,), "expert_used_count": (0,), "logit_scale": (1,),
    "embedding_scale": (1,), "residual_scale": (1,), "use_parallel_residual": (False,),
    "rope.scaling.yarn_ext_factor": (1,), "rope.scaling.yarn_log_multiplier": (0,),
}
_HARMLESS = {"rope.scaling.finetuned", "tensor_data_layout"}
_SHORT_FACTORS, _LONG_FACTORS = "rope_factors_short.weight", "rope_factors_long.weight"
_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def spec_from_gguf(checkpoint: Checkpoint) -> ModelSpec:
    """Return the shape that the GGUF header describes. Raises: Unsupported, BadFile."""
    name = checkpoint.path.name
    header = Fields(f"`{name}`", checkpoint.metadata)
    header.require({"general.type": ("model",)})
    architecture = header.text("general.architecture")
    prefix = architecture + "."
    has_experts = bool(checkpoint.metadata.get(prefix + "expert_count"))
    row = find_row_of_gguf(architecture, name, has_experts=has_experts)
    model = Fields(f"`{name}` under `{prefix}`", {
        key.removeprefix(prefix): value
        for key, value in checkpoint.metadata.items() if key.startswith(prefix)})
    required = {key: values for key, values in _REQUIRED.items() if key not in row.gguf_keys}
    required |= row.gguf_required
    model.require(required)
    model.refuse_unknown(_READ | row.gguf_keys | required.keys() | _HARMLESS)
    settings = _common_settings(model, checkpoint, row) | {"model_type": row.model_type, **row.fixed}
    return ModelSpec(**(settings | row.read_gguf(model, settings)))


def _common_settings(model: Fields, checkpoint: Checkpoint, row: ArchitectureRow) -> dict[str, Any]:
    """What most architectures say with the same keys."""
    hidden_size = model.integer("embedding_length", 1, 1 << 20)
    num_heads = _head_count(model, "attention.head_count", None)
    context = model.integer("context_length", 1, 1 << 28)
    tensors = checkpoint.tensors
    head_dim = _head_dim(model, hidden_size, num_heads, row.gguf_keys)
    return dict(
        vocab_size=_vocab_size(checkpoint),
        hidden_size=hidden_size,
        num_layers=model.integer("block_count", 1, 1 << 12),
        num_heads=num_heads,
        num_kv_heads=_head_count(model, "attention.head_count_kv", num_heads),
        head_dim=head_dim,
        rotary_dim=_rotary_dim(model, head_dim, can_be_part="rope.dimension_count" in row.gguf_keys),
        intermediate_size=model.integer("feed_forward_length", 1, 1 << 22),
        max_position=context,
        rms_norm_eps=model.number("attention.layer_norm_rms_epsilon", 0.0, 1.0),
        rope=_read_rope(model, context, tensors),
        is_tied="output.weight" not in tensors,
        has_attention_bias=any(".attn_" in tensor and tensor.endswith(".bias") for tensor in tensors),
        has_mlp_bias=any(".ffn_" in tensor and tensor.endswith(".bias") for tensor in tensors),
        qk_norm="head" if "use_qk_norm" in row.keys and "blk.0.attn_q_norm.weight" in tensors else "none",
        dtype=_main_type(checkpoint))


def _vocab_size(checkpoint: Checkpoint) -> int:
    entry = checkpoint.tensors.get("token_embd.weight")
    if entry is None or len(entry.shape) != 2:
        shape = "absent" if entry is None else f"of shape {list(entry.shape)}"
        raise BadFile(f"`{checkpoint.path.name}`: tensor `token_embd.weight` is {shape}",
                      why="it holds one row per token of the vocabulary",
                      hint="fetch the model again with `hearth pull`")
    return entry.shape[0]


def _head_count(model: Fields, key: str, default: int | None) -> int:
    """Some files list one count per layer; equal counts are one count."""
    counts = model.values.get(key)
    if isinstance(counts, list | tuple) and counts and all(count == counts[0] for count in counts):
        return Fields(model.source, {key: counts[0]}).integer(key, 1, 1 << 14)
    if isinstance(counts, list | tuple):
        raise Unsupported(f"{model.source}: `{key}` differs from layer to layer",
                          why="this version runs layers of one shape", hint="hearth run smollm2")
    return model.integer(key, 1, 1 << 14, default)


def _head_dim(model: Fields, hidden_size: int, num_heads: int, read_by_row: frozenset[str]) -> int:
    if not model.has("attention.key_length") and hidden_size % num_heads:
        raise BadFile(f"{model.source}: `embedding_length` {hidden_size} is no multiple of {num_heads} heads",
                      why="without `attention.key_length` the heads share it evenly",
                      hint="fetch the model again with `hearth pull`")
    head_dim = model.integer("attention.key_length", 1, 1 << 14, hidden_size // num_heads)
    if "attention.value_length" not in read_by_row and (
            model.integer("attention.value_length", 1, 1 << 14, head_dim) != head_dim):
        raise _unequal(model, "attention.value_length", head_dim)
    return head_dim


def _rotary_dim(model: Fields, head_dim: int, *, can_be_part: bool) -> int | None:
    """None where the whole head is turned."""
    rotary_dim = model.integer("rope.dimension_count", 1, 1 << 14, head_dim)
    if rotary_dim == head_dim:
        return None
    if not can_be_part:
        raise _unequal(model, "rope.dimension_count", head_dim)
    return rotary_dim


def _unequal(model: Fields, key: str, head_dim: int) -> Unsupported:
    return Unsupported(f"{model.source}: `{key}` is {model.values[key]}, the head size {head_dim}",
                       why="this version needs them equal", hint="hearth run smollm2")


def _read_rope(model: Fields, context: int, tensors: Mapping[str, TensorEntry]) -> RopeSpec:
    has_factors = "rope_freqs.weight" in tensors
    theta = model.number("rope.freq_base", 1.0001, 1e30, 10000.0)
    factor_key = "rope.scaling.factor" if model.has("rope.scaling.factor") else "rope.scale_linear"
    kind = model.text("rope.scaling.type", "linear" if model.has(factor_key) else "none")
    factor = model.number(factor_key, 0.0, 1e6, 1.0) or 1.0
    if kind not in ("none", "linear", "yarn") or (has_factors and kind != "none" and factor != 1.0):
        also = " together with `rope_freqs.weight`" if has_factors else ""
        raise Unsupported(f"{model.source} wants rope scaling `{kind}`{also}",
                          why="this version computes: none, linear, yarn, or `rope_freqs.weight`",
                          hint="hearth run smollm2")
    if _LONG_FACTORS in tensors or _SHORT_FACTORS in tensors:
        return _read_longrope(model, theta, context, tensors)
    if has_factors:
        return RopeSpec("factors", theta, original_max_position=context)
    if kind == "none":
        return RopeSpec("default", theta, original_max_position=context)
    if kind == "linear":
        return RopeSpec("linear", theta, factor, context)
    return RopeSpec("yarn", theta, factor,
                    model.integer("rope.scaling.original_context_length", 1, 1 << 28, context),
                    beta_fast=model.number("rope.scaling.yarn_beta_fast", 0.0, 1e6, 32.0) or 32.0,
                    beta_slow=model.number("rope.scaling.yarn_beta_slow", 0.0, 1e6, 1.0) or 1.0,
                    attention_factor=_yarn_attention_factor(model, factor))


def _read_longrope(model: Fields, theta: float, context: int,
                   tensors: Mapping[str, TensorEntry]) -> RopeSpec:
    """Factors are tensors. Without `rope.scaling.attn_factor` angles are not scaled (llama.cpp's default)."""
    original = model.integer("rope.scaling.original_context_length", 2, 1 << 28)
    rope = RopeSpec("longrope", theta, context / original, original,
                    short_factors=_read_factors(model, tensors, _SHORT_FACTORS),
                    long_factors=_read_factors(model, tensors, _LONG_FACTORS))
    stored = model.number("rope.scaling.attn_factor", 0.0, 1e6, 1.0)
    own = math.sqrt(1 + math.log(rope.factor) / math.log(original)) if rope.factor > 1 else 1.0
    return rope if math.isclose(stored, own, rel_tol=1e-6) else replace(rope, attention_factor=stored)


def _read_factors(model: Fields, tensors: Mapping[str, TensorEntry], name: str) -> tuple[float, ...]:
    entry = tensors.get(name)
    if entry is None or entry.type != "F32" or len(entry.shape) != 1:
        shown = "absent" if entry is None else f"{entry.type} of shape {list(entry.shape)}"
        raise BadFile(f"{model.source}: tensor `{name}` is {shown}",
                      why="rotary factors are F32, one per pair of numbers that is turned",
                      hint="fetch the model again with `hearth pull`")
    factors = list(struct.unpack(f"<{entry.shape[0]}f", map_tensor(entry)))
    return Fields(model.source, {name: factors}).numbers(name, 1e-6, 1e6)


def _yarn_attention_factor(model: Fields, factor: float) -> float | None:
    """GGUF stores a multiplier of yarn's own factor (ggml `rope_yarn`), transformers the product."""
    keys = ("rope.scaling.yarn_attn_factor", "rope.scaling.attn_factor")
    key = next((key for key in keys if model.has(key)), None)
    if key is None:
        return None
    return model.number(key, 0.0, 1e6) * yarn_factor(factor)


def _main_type(checkpoint: Checkpoint) -> str:
    num_bytes: Counter[str] = Counter()
    for entry in checkpoint.tensors.values():
        num_bytes[entry.type] += entry.num_bytes
    name = num_bytes.most_common(1)[0][0]
    return _DTYPES.get(name, name.lower())
