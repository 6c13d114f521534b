"""DeepSeek V2, V2-Lite, V3 and R1."""

import numpy as np

from support.families import Case
from support.families.experts import stacked

SIZES = {"num_hidden_layers": 3, "num_key_value_heads": 4, "kv_lora_rank": 32, "q_lora_rank": 24,
         "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 12, "n_routed_experts": 8,
         "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_shared_experts": 1,
         "first_k_dense_replace": 1}
GROUPS = SIZES | {"n_group": 4, "topk_group": 2}
INDEX = {"index_n_heads": 4, "index_head_dim": 16, "index_topk": 128}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 128}
LITE = SIZES | {"q_lora_rank": None, "n_shared_experts": 2, "num_experts_per_tok": 3}


def old_metadata(config):
    """As the converter wrote them before it split the heads."""
    is_v3, rope = config["model_type"] != "deepseek_v2", config["rope_parameters"]
    values = {
        "attention.key_length": config["qk_nope_head_dim"] + config["qk_rope_head_dim"],
        "attention.value_length": config["v_head_dim"], "rope.dimension_count": config["qk_rope_head_dim"],
        "attention.q_lora_rank": config["q_lora_rank"], "attention.kv_lora_rank": config["kv_lora_rank"],
        "leading_dense_block_count": config["first_k_dense_replace"],
        "expert_count": config["n_routed_experts"], "expert_used_count": config["num_experts_per_tok"],
        "expert_shared_count": config["n_shared_experts"],
        "expert_feed_forward_length": config["moe_intermediate_size"],
        "expert_weights_scale": config["routed_scaling_factor"],
        "expert_weights_norm": config["norm_topk_prob"], "expert_gating_func": 2 if is_v3 else 1}
    if config.get("index_topk"):
        values |= {"attention.indexer.head_count": config["index_n_heads"],
                   "attention.indexer.key_length": config["index_head_dim"],
                   "attention.indexer.top_k": config["index_topk"]}
    if config.get("n_group"):
        values |= {"expert_group_count": config["n_group"], "expert_group_used_count": config["topk_group"]}
    if rope["rope_type"] == "yarn":
        values |= {"rope.scaling.type": "yarn", "rope.scaling.factor": rope["factor"],
                   "rope.scaling.original_context_length": rope["original_max_position_embeddings"],
                   "rope.scaling.yarn_log_multiplier": 0.1 * rope["mscale_all_dim"]}
    return values


def metadata(config):
    old, rank = old_metadata(config), config["kv_lora_rank"]
    return old | {
        "attention.head_count_kv": 1, "attention.key_length": rank + config["qk_rope_head_dim"],
        "attention.value_length": rank, "attention.key_length_mla": old["attention.key_length"],
        "attention.value_length_mla": old["attention.value_length"]}


def old_tensors(config, tensors):
    """Experts of a layer as one tensor; the correction under the converter's name."""
    named = {name.replace("e_score_correction_bias", "e_score_correction.bias"): array
             for name, array in tensors.items()}
    return stacked(config, named)


def tensors(config, tensors):
    """The heads of latent attention as two tensors, that of the keys transposed."""
    split = {}
    for name, array in old_tensors(config, tensors).items():
        if "kv_b_proj" in name:
            heads = array.reshape(config["num_attention_heads"], -1, config["kv_lora_rank"])
            keys, values = np.split(heads, [config["qk_nope_head_dim"]], axis=1)
            split[name.replace("kv_b_proj", "k_b_proj")] = keys.swapaxes(1, 2)
            split[name.replace("kv_b_proj", "v_b_proj")] = values
        else:
            split[name] = array
    return split


GGUF = {"gguf": "deepseek2", "gguf_metadata": metadata, "gguf_tensors": tensors}
V32_GGUF = GGUF | {"gguf": "deepseek32", "gguf_map": "glm-dsa"}
OLD_GGUF = {"gguf": "deepseek2", "gguf_metadata": old_metadata, "gguf_tensors": old_tensors}

CASES = {
    "deepseek_v3": Case("deepseek_v3", GROUPS | {"num_mtp_layers": 0}, without={"topk_group": 4}, **GGUF),
    "deepseek_v3_dense_halves": Case(
        "deepseek_v3", GROUPS | {"q_lora_rank": None, "rope_interleave": False, "first_k_dense_replace": 3},
        without={"rope_interleave": True}),
    "deepseek_v3_yarn_bias": Case(
        "deepseek_v3", GROUPS | {"attention_bias": True, "norm_topk_prob": False,
                                 "routed_scaling_factor": 1.5,
                                 "rope_parameters": YARN | {"mscale": 0.7, "mscale_all_dim": 1.1}},
        without={"rope_parameters": YARN}),
    "kimi_k2": Case(
        "deepseek_v3", SIZES | {"n_group": 1, "topk_group": 1, "rope_parameters": YARN | {
            "beta_fast": 1.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0}},
        without={"rope_parameters": YARN | {"mscale": 1.0, "mscale_all_dim": 1.0}}, written_as="kimi_k2"),
    "kimi_k2_all_dense": Case("deepseek_v3", GROUPS | {"first_k_dense_replace": 3}, written_as="kimi_k2"),
    "kimi_k2_groups": Case("deepseek_v3", GROUPS | {"routed_scaling_factor": 2.827},
                           without={"topk_group": 4}, written_as="kimi_k2"),
    "deepseek_v3_one_group": Case(
        "deepseek_v3", SIZES | {"n_group": 1, "topk_group": 1, "n_shared_experts": 2},
        without={"norm_topk_prob": False}),
    "deepseek_v32": Case("deepseek_v32", GROUPS | INDEX, without={"routed_scaling_factor": 1.0}, **V32_GGUF),
    "deepseek_v32_bias": Case("deepseek_v32", GROUPS | INDEX | {"attention_bias": True}),
    "deepseek_v32_yarn": Case(
        "deepseek_v32", GROUPS | INDEX | {"first_k_dense_replace": 2, "rope_parameters": YARN | {
            "mscale": 1.0, "mscale_all_dim": 1.0}}, without={"rope_parameters": YARN}, **V32_GGUF),
    "deepseek_v2": Case(
        "deepseek_v2", GROUPS | {"topk_method": "group_limited_greedy", "routed_scaling_factor": 16.0,
                                 "num_experts_per_tok": 3}, without={"topk_method": "greedy"}, **OLD_GGUF),
    "deepseek_v2_lite": Case("deepseek_v2", LITE, without={"num_experts_per_tok": 2}, **OLD_GGUF),
    "deepseek_v2_yarn": Case(
        "deepseek_v2", LITE | {"rope_parameters": YARN | {"mscale": 0.707, "mscale_all_dim": 0.707}},
        without={"rope_parameters": YARN}, **GGUF),
    "deepseek_v2_tied_bias": Case("deepseek_v2", SIZES | {"tie_word_embeddings": True,
                                                          "attention_bias": True}),
}
