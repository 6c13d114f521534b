"""DeepSeek V2, V2-Lite, V3, R1, V3.1 and V3.2, Kimi K2: latent attention and many small experts.

Read as in transformers 5.23 (`DeepseekV2Config`, `DeepseekV3Config`); keys that only the original
configurations have (arXiv 2405.04434, 2412.19437) name the routing that their type has. GGUF: `deepseek2`, as
llama.cpp's converter writes it, with the latent sizes under `key_length` or, before, those of a head; V3.2
as `deepseek32` (`DeepseekV32Model`), which has the indexer as well.

V3.2 chooses the `index_topk` keys that a query sees. Contexts of no more than that see all of them, so such
contexts are what is computed: they are the model's max_position.
"""

from __future__ import annotations

import dataclasses
import math

from openhearth.errors import BadFile, Unsupported
from openhearth.spec.architectures import experts
from openhearth.spec.architectures.records import ArchitectureRow, Settings
from openhearth.spec.fields import Fields
from openhearth.spec.records import MlaSpec, ModelSpec, RopeSpec

_KEYS = experts.GROUPED_KEYS | {
    "q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "topk_method",
    "rope_interleave"}
# Derived sizes, the loss, how training was spread.
_HARMLESS = frozenset({"qk_head_dim", "ep_size", "aux_loss_alpha", "seq_aux",
                       "output_router_logits", "router_aux_loss_coef"})
_REQUIRED = {"moe_layer_freq": (1,), "mlp_bias": (False,)}


def _read(config: Fields, settings: Settings) -> Settings:
    if settings["num_kv_heads"] != settings["num_heads"]:
        raise Unsupported(f"{config.source} sets `num_key_value_heads` to {settings['num_kv_heads']}",
                          why=f"latent attention has as many as heads, {settings['num_heads']}",
                          hint="hearth run smollm2")
    mla = MlaSpec(
        q_rank=config.integer("q_lora_rank", 1, 1 << 20) if config.has("q_lora_rank") else None,
        kv_rank=config.integer("kv_lora_rank", 1, 1 << 14),
        nope_dim=config.integer("qk_nope_head_dim", 1, 1 << 14),
        rope_dim=config.integer("qk_rope_head_dim", 2, 1 << 14),
        value_dim=config.integer("v_head_dim", 1, 1 << 14),
        is_interleaved=config.flag("rope_interleave", True))
    scaling = config.mapping("rope_scaling" if config.has("rope_scaling") else "rope_parameters")
    if settings["rope"].type not in ("default", "yarn"):
        scaling.require({"mscale_all_dim": (0,)})
    is_v2 = settings["model_type"] == "deepseek_v2"
    has_groups = not is_v2 or config.text("topk_method") == "group_limited_greedy"
    moe = experts.read_grouped(config, _SOFTMAX_SCORES if is_v2 else experts.SIGMOID_SCORES,
                               has_groups=has_groups)
    return _latent(mla, settings["rope"]) | {"moe": moe, "num_extra_layers": experts.num_extra_layers(config)}


def _read_kimi(config: Fields, settings: Settings) -> Settings:
    """Kimi K2 is a DeepSeek V3 that its makers gave a name; written out it has the name that all know."""
    return _read(config, settings) | {"model_type": "deepseek_v3"}


def _read_v32(config: Fields, settings: Settings) -> Settings:
    found = _read(config, settings)
    num_layers, first = settings["num_layers"], len(found["moe"].dense_layers)
    kinds = ["dense"] * min(first, num_layers) + ["sparse"] * max(num_layers - first, 0)
    config.require({"mlp_layer_types": (kinds,), "layer_types": (["indexed_attention"] * num_layers,)})
    return found | _indexed(config, settings, found["mla"], "index_n_heads", "index_head_dim", "index_topk")


def _indexed(fields: Fields, settings: Settings, mla: MlaSpec, heads: str, dim: str, limit: str) -> Settings:
    """Return what the indexer's three keys say, named as in these fields. Raises: BadFile."""
    if mla.q_rank is None:
        raise BadFile(f"{fields.source} has no `q_lora_rank`", why="the indexer reads compressed queries",
                      hint="fetch the model again with `hearth pull`")
    mla = dataclasses.replace(mla, index_heads=fields.integer(heads, 1, 1 << 14),
                              index_dim=fields.integer(dim, 1, 1 << 14))
    return {"mla": mla, "max_position": min(settings["max_position"], fields.integer(limit, 1, 1 << 28))}


def _latent(mla: MlaSpec, rope: RopeSpec) -> Settings:
    """Fields that follow from latent attention; yarn with `mscale_all_dim` makes scores larger."""
    head_dim, magnitude = mla.nope_dim + mla.rope_dim, 1.0
    if mla.rope_dim % 2:
        raise BadFile(f"the turned part of a head has {mla.rope_dim} numbers",
                      why="rotary embeddings turn pairs of numbers, so it must be even",
                      hint="fetch the model again with `hearth pull`")
    if rope.mscale_all_dim and rope.factor > 1:
        magnitude = 0.1 * rope.mscale_all_dim * math.log(rope.factor) + 1.0
    return {"mla": mla, "head_dim": head_dim, "rotary_dim": None,
            "attention_scale": head_dim ** -0.5 * magnitude * magnitude}


_SOFTMAX_SCORES: Settings = {"scoring": "softmax", "group_score": "max"}


def _write(spec: ModelSpec) -> Settings:
    mla, moe = spec.mla, spec.moe
    longest = max(spec.max_position, spec.rope.original_max_position)
    method = "noaux_tc" if moe.has_bias else "group_limited_greedy" if moe.num_groups > 1 else "greedy"
    return {
        "head_dim": mla.rope_dim, "num_key_value_heads": spec.num_heads, "q_lora_rank": mla.q_rank,
        "kv_lora_rank": mla.kv_rank, "qk_nope_head_dim": mla.nope_dim, "qk_rope_head_dim": mla.rope_dim,
        "v_head_dim": mla.value_dim, "topk_method": method, "scoring_func": moe.scoring,
        **experts.write_grouped(moe),
        **({"rope_interleave": mla.is_interleaved, "num_nextn_predict_layers": spec.num_extra_layers}
           if moe.has_bias else {}),
        **({"index_n_heads": mla.index_heads, "index_head_dim": mla.index_dim,
            "index_topk": spec.max_position, "max_position_embeddings": longest}
           if mla.index_heads else {})}


_GGUF_KEYS = experts.GROUPED_GGUF_KEYS | {
    "attention.q_lora_rank", "attention.kv_lora_rank", "attention.key_length_mla",
    "attention.value_length_mla", "attention.value_length", "rope.dimension_count", "expert_gating_func",
    "rope.scaling.yarn_log_multiplier", "nextn_predict_layers"}
_SOFTMAX, _SIGMOID = 1, 2
"""Values of `expert_gating_func`, gguf-py 0.19 (`ExpertGatingFuncType`)."""


def _read_gguf(model: Fields, settings: Settings) -> Settings:
    """Newer headers count one kv head, as wide as a latent row; a head's own sizes then have other keys.

    `block_count` includes the layers that only predict further tokens.
    """
    num_extra = model.integer("nextn_predict_layers", 0, settings["num_layers"] - 1, 0)
    is_latent = model.has("attention.key_length_mla")
    suffix = "_mla" if is_latent else ""
    head_dim = model.integer(f"attention.key_length{suffix}", 1, 1 << 14)
    rope_dim = model.integer("rope.dimension_count", 2, head_dim - 1)
    q_key = "attention.q_lora_rank"
    mla = MlaSpec(
        q_rank=model.integer(q_key, 1, 1 << 20) if model.has(q_key) else None,
        kv_rank=model.integer("attention.kv_lora_rank", 1, 1 << 14), nope_dim=head_dim - rope_dim,
        rope_dim=rope_dim, value_dim=model.integer(f"attention.value_length{suffix}", 1, 1 << 14))
    rope = settings["rope"]
    if rope.type == "yarn":
        # The header holds a tenth of it, in float32, and nothing of `mscale`: files of both are equal.
        mscale = round(10 * model.number("rope.scaling.yarn_log_multiplier", 0.0, 1e5, 0.0), 6) or None
        rope = dataclasses.replace(rope, mscale=mscale, mscale_all_dim=mscale)
    gating = model.integer("expert_gating_func", _SOFTMAX, _SIGMOID, _SOFTMAX)
    model_type = "deepseek_v3" if gating == _SIGMOID else "deepseek_v2"
    return _latent(mla, rope) | {
        "model_type": model_type, "rope": rope, "num_kv_heads": settings["num_heads"],
        "num_layers": settings["num_layers"] - num_extra, "num_extra_layers": num_extra,
        "moe": experts.read_grouped_gguf(
            model, experts.SIGMOID_SCORES if gating == _SIGMOID else _SOFTMAX_SCORES)}


_INDEX_GGUF_KEYS = tuple(f"attention.indexer.{key}" for key in ("head_count", "key_length", "top_k"))


def _read_v32_gguf(model: Fields, settings: Settings) -> Settings:
    model.require({"expert_gating_func": (_SIGMOID,)})
    found = _read_gguf(model, settings)
    return found | _indexed(model, settings, found["mla"], *_INDEX_GGUF_KEYS) | {"model_type": "deepseek_v32"}


_OWN_MODULES = frozenset({"configuration_deepseek", "modeling_deepseek"})
_COMMON = {"keys": _KEYS, "harmless": _HARMLESS, "own_modules": _OWN_MODULES, "read": _read, "write": _write,
           "gguf": "deepseek2", "gguf_keys": _GGUF_KEYS, "read_gguf": _read_gguf}
_V3_DEFAULTS = {
    "head_dim": 64, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
    "n_routed_experts": 256, "n_shared_experts": 1, "num_experts_per_tok": 8, "moe_intermediate_size": 2048,
    "first_k_dense_replace": 3, "n_group": 8, "topk_group": 4, "routed_scaling_factor": 2.5,
    "norm_topk_prob": True}
_V3_REQUIRED = _REQUIRED | {"scoring_func": ("sigmoid",), "topk_method": ("noaux_tc",)}
_INDEX_KEYS = frozenset({"index_n_heads", "index_head_dim", "index_topk", "mlp_layer_types", "layer_types"})

ROWS = (
    ArchitectureRow(
        "deepseek_v2", "DeepseekV2ForCausalLM", "deepseek",
        defaults={"head_dim": 64, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
                  "v_head_dim": 128, "n_routed_experts": 64, "n_shared_experts": 2,
                  "moe_intermediate_size": 1407, "first_k_dense_replace": 0, "topk_method": "greedy",
                  "routed_scaling_factor": 1.0, "norm_topk_prob": False},
        required=_REQUIRED | {"scoring_func": ("softmax",), "norm_topk_prob": (False,),
                              "topk_method": ("greedy", "group_limited_greedy"), "rope_interleave": (True,)},
        **_COMMON),
    ArchitectureRow("deepseek_v3", "DeepseekV3ForCausalLM", "deepseek", defaults=_V3_DEFAULTS,
                    required=_V3_REQUIRED, **_COMMON),
    ArchitectureRow("kimi_k2", "DeepseekV3ForCausalLM", "deepseek", defaults=_V3_DEFAULTS,
                    required=_V3_REQUIRED, **_COMMON | {"read": _read_kimi}),
    ArchitectureRow(
        "deepseek_v32", "DeepseekV32ForCausalLM", "deepseek", "deepseek32", keys=_KEYS | _INDEX_KEYS,
        harmless=_HARMLESS, own_modules=_OWN_MODULES,
        defaults=_V3_DEFAULTS | {"max_position_embeddings": 163840, "index_n_heads": 64,
                                 "index_head_dim": 128, "index_topk": 2048},
        required=_V3_REQUIRED | {"rope_interleave": (True,)}, read=_read_v32, write=_write,
        gguf_keys=_GGUF_KEYS.union(_INDEX_GGUF_KEYS), read_gguf=_read_v32_gguf),
)
