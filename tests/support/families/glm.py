"""GLM-4, the releases of 2024 (glm) and of April 2025 (glm4); GLM-4.5 (glm4_moe)."""

import numpy as np

from support.families import Case
from support.families.experts import stacked

WHOLE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0}}


def metadata(config):
    share = config["rope_parameters"]["partial_rotary_factor"]
    return {"rope.dimension_count": int(config["head_dim"] * share)}


def chatglm_metadata(config):
    """As `ChatGLMModel` of the converter: without a size of heads, which share the width."""
    return metadata(config) | {"attention.key_length": None, "attention.value_length": None}


def chatglm_tensors(config, tensors):
    """Queries, keys and values in one tensor, as checkpoints of the first layout had them."""
    fused = dict(tensors)
    for name in tensors:
        if ".q_proj." in name:
            parts = [fused.pop(name.replace("q_proj", f"{part}_proj")) for part in "qkv"]
            layer, kind = name.split(".")[2], name.rsplit(".", 1)[1]
            fused[f"blk.{layer}.attn_qkv.{kind}"] = np.concatenate(parts)
    return fused


def moe_metadata(config):
    return metadata(config) | {
        "block_count": config["num_hidden_layers"] + config["num_nextn_predict_layers"],
        "nextn_predict_layers": config["num_nextn_predict_layers"],
        "leading_dense_block_count": config["first_k_dense_replace"],
        "expert_count": config["n_routed_experts"], "expert_used_count": config["num_experts_per_tok"],
        "expert_shared_count": config["n_shared_experts"], "expert_gating_func": 2,
        "expert_feed_forward_length": config["moe_intermediate_size"],
        "expert_weights_scale": config["routed_scaling_factor"],
        "expert_weights_norm": config["norm_topk_prob"]}


def moe_tensors(config, tensors):
    """The correction under the converter's name; a layer that predicts further tokens, which nobody reads."""
    named = {name.replace("e_score_correction_bias", "e_score_correction.bias"): array
             for name, array in tensors.items()}
    extra = {f"blk.{config['num_hidden_layers']}.nextn.eh_proj.weight": np.ones((32, 64), np.float32)}
    return stacked(config, named) | (extra if config["num_nextn_predict_layers"] else {})


MOE_GGUF = dict(gguf="glm4moe", gguf_metadata=moe_metadata, gguf_tensors=moe_tensors)
MOE = {"head_dim": 16, "num_hidden_layers": 3, "n_routed_experts": 8, "num_experts_per_tok": 3,
       "moe_intermediate_size": 32, "attention_bias": True, "use_qk_norm": True}
GGUF = dict(gguf="glm4", gguf_metadata=metadata)
CHATGLM = dict(gguf="chatglm", gguf_metadata=chatglm_metadata)
UNBIASED = {"attention_bias": False, "head_dim": 32, "tie_word_embeddings": True}

CASES = {
    "glm": Case("glm", {"head_dim": 16}, without=WHOLE, gguf_tensors=chatglm_tensors, **CHATGLM),
    "glm_unbiased_tied_yarn": Case("glm", {**UNBIASED, "rope_parameters": {
        "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 128,
        "partial_rotary_factor": 0.5}}, without={"rope_parameters": {
            "rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}}),
    "glm_whole": Case("glm", {"head_dim": 16, "num_key_value_heads": 1, **WHOLE}, **CHATGLM),
    "glm_tied": Case("glm", {"attention_bias": False, "head_dim": 16, "tie_word_embeddings": True},
                     gguf_tensors=chatglm_tensors, **CHATGLM),
    "glm4": Case("glm4", {"head_dim": 16}, without=WHOLE, **GGUF),
    "glm4_unbiased_tied": Case("glm4", UNBIASED, **GGUF),
    "glm4_quarter": Case("glm4", {"head_dim": 32, "num_key_value_heads": 1, "rope_parameters": {
        "rope_type": "default", "rope_theta": 500000.0, "partial_rotary_factor": 0.25}}, without=WHOLE,
        **GGUF),
    "glm4_moe": Case("glm4_moe", MOE | {"routed_scaling_factor": 2.5, "num_mtp_layers": 1},
                     without={"routed_scaling_factor": 1.0}, **MOE_GGUF),
    "glm4_moe_air": Case("glm4_moe", MOE | {"use_qk_norm": False, "n_shared_experts": 2, "num_mtp_layers": 0},
                         without=WHOLE, **MOE_GGUF),
    "glm4_moe_groups": Case("glm4_moe", MOE | {
        "n_group": 4, "topk_group": 2, "norm_topk_prob": False, "attention_bias": False,
        "first_k_dense_replace": 2, "tie_word_embeddings": True}, without={"topk_group": 4}),
}
