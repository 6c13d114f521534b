"""GLM-4: the releases of 2024 (`glm`) and of April 2025 (`glm4`); GLM-4.5 and 4.6 (`glm4_moe`), with experts.

Read as in transformers 5.23 (`GlmConfig`, `Glm4Config`, `Glm4MoeConfig`); GGUF keys of chatglm, glm4 and
glm4moe as llama.cpp's converter writes them (`ChatGLMModel`, `Glm4Model`, `Glm4MoeModel`). Of the first
release it writes what it read: from the layout of transformers that is a context as long as the hidden size,
and a `rope.freq_base` of 10000.
"""

from __future__ import annotations

from openhearth.errors import BadFile
from openhearth.spec.architectures import experts
from openhearth.spec.architectures.records import ArchitectureRow, Settings
from openhearth.spec.architectures.rotary import read_rotary_dim
from openhearth.spec.fields import Fields
from openhearth.spec.records import ModelSpec

_DEFAULTS = {"head_dim": 128, "num_key_value_heads": 2, "max_position_embeddings": 131072,
             "rms_norm_eps": 1.5625e-7, "partial_rotary_factor": 0.5, "attention_bias": True}
_KEYS = frozenset({"partial_rotary_factor"})
_REQUIRED = {"mlp_bias": (False,)}
_LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj")
_SIGMOID = 2
"""Value of `expert_gating_func`, gguf-py 0.19 (`ExpertGatingFuncType`)."""


def _read_moe(config: Fields, settings: Settings) -> Settings:
    return read_rotary_dim(config, settings) | {
        "qk_norm": "head" if config.flag("use_qk_norm", False) else "none",
        "moe": experts.read_grouped(config, experts.SIGMOID_SCORES),
        "num_extra_layers": experts.num_extra_layers(config)}


def _write_moe(spec: ModelSpec) -> Settings:
    return experts.write_grouped(spec.moe) | {
        "use_qk_norm": spec.qk_norm == "head", "num_nextn_predict_layers": spec.num_extra_layers}


def _read_moe_gguf(header: Fields, settings: Settings) -> Settings:
    """The layers that only predict further tokens are counted with the others."""
    num_extra = header.integer("nextn_predict_layers", 0, 64, 0)
    if num_extra >= settings["num_layers"]:
        raise BadFile(f"{header.source}: {num_extra} of {settings['num_layers']} layers only predict further "
                      "tokens", why="the others are the model",
                      hint="fetch the model again with `hearth pull`")
    return {"num_layers": settings["num_layers"] - num_extra, "num_extra_layers": num_extra,
            "moe": experts.read_grouped_gguf(header, experts.SIGMOID_SCORES)}


ROWS = (
    ArchitectureRow("glm", "GlmForCausalLM", "glm", "chatglm", fixed={"has_output_bias": False},
                    defaults=_DEFAULTS, keys=_KEYS, required=_REQUIRED, read=read_rotary_dim,
                    gguf_keys=frozenset({"rope.dimension_count"}), linears=_LINEARS),
    ArchitectureRow("glm4", "Glm4ForCausalLM", "glm4", "glm4",
                    fixed={"has_output_bias": False, "num_layer_norms": 4}, defaults=_DEFAULTS, keys=_KEYS,
                    required=_REQUIRED, read=read_rotary_dim, gguf_keys=frozenset({"rope.dimension_count"}),
                    linears=_LINEARS),
    ArchitectureRow(
        "glm4_moe", "Glm4MoeForCausalLM", "glm4_moe", "glm4moe", fixed={"has_output_bias": False},
        defaults={"num_key_value_heads": 8, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5,
                  "partial_rotary_factor": 0.5, "n_routed_experts": 128, "n_shared_experts": 1,
                  "num_experts_per_tok": 8, "moe_intermediate_size": 1408, "first_k_dense_replace": 1,
                  "n_group": 1, "topk_group": 1, "routed_scaling_factor": 1.0, "norm_topk_prob": True},
        keys=_KEYS | experts.GROUPED_KEYS | {"use_qk_norm"}, harmless=experts.TRAINING_KEYS,
        required=_REQUIRED, read=_read_moe, write=_write_moe,
        gguf_keys=experts.GROUPED_GGUF_KEYS | {"rope.dimension_count", "nextn_predict_layers"},
        gguf_required={"expert_gating_func": (_SIGMOID,)}, read_gguf=_read_moe_gguf),
)
