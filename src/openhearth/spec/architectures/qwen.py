"""Qwen2, Qwen2.5 and Qwen3, dense and with experts.

Read as in transformers 5.23 (`Qwen2Config`, `Qwen3Config`, `Qwen2MoeConfig`, `Qwen3MoeConfig`).
"""

from __future__ import annotations

from functools import partial

from openhearth.spec.architectures import experts
from openhearth.spec.architectures.records import ArchitectureRow, Settings
from openhearth.spec.fields import Fields
from openhearth.spec.records import ModelSpec

_WINDOW = "sliding_attention"
_WINDOW_KEYS = frozenset({"use_sliding_window", "sliding_window", "max_window_layers", "layer_types"})


def _read_windows(config: Fields, settings: Settings) -> Settings:
    """The first max_window_layers layers see everything, those after them a window, when it is in use."""
    if not config.flag("use_sliding_window", False) or not config.has("sliding_window"):
        return {}
    size = config.integer("sliding_window", 1, 1 << 28)
    first = config.integer("max_window_layers", 0, 1 << 12, 28)
    return {"windows": tuple(size if layer >= first else 0 for layer in range(settings["num_layers"]))}


def _write_windows(spec: ModelSpec) -> Settings:
    if not any(spec.windows):
        return {"use_sliding_window": False}
    size = max(spec.windows)
    return {"use_sliding_window": True, "sliding_window": size, "max_window_layers": spec.windows.index(size)}


def _read_qwen2_moe(config: Fields, settings: Settings) -> Settings:
    """Every other of the first max_window_layers layers has a window, unless layer_types says otherwise."""
    moe = {"moe": experts.read_qwen(config, settings, has_shared=True)}
    if not config.flag("qkv_bias", True):
        moe["has_attention_bias"] = False
    if not config.flag("use_sliding_window", False) or not config.has("sliding_window"):
        return moe
    size = config.integer("sliding_window", 1, 1 << 28)
    first = config.integer("max_window_layers", 0, 1 << 12, 28)
    kinds = config.values.get("layer_types") or [
        _WINDOW if layer % 2 == 0 and layer < first else "full_attention"
        for layer in range(settings["num_layers"])]
    return moe | {"windows": tuple(size if kind == _WINDOW else 0 for kind in kinds)}


def _write_qwen2_moe(spec: ModelSpec) -> Settings:
    settings = experts.write_qwen(spec) | {"qkv_bias": spec.has_attention_bias, "use_sliding_window": False}
    if not any(spec.windows):
        return settings
    kinds = [_WINDOW if size else "full_attention" for size in spec.windows]
    return settings | {"use_sliding_window": True, "sliding_window": max(spec.windows), "layer_types": kinds}


def _read_qwen3_moe(config: Fields, settings: Settings) -> Settings:
    moe = {"moe": experts.read_qwen(config, settings, has_shared=False)}
    if not config.flag("use_sliding_window", False) or not config.has("sliding_window"):
        return moe
    return moe | {"windows": (config.integer("sliding_window", 1, 1 << 28),) * settings["num_layers"]}


def _write_qwen3_moe(spec: ModelSpec) -> Settings:
    window = {"sliding_window": max(spec.windows)} if any(spec.windows) else {}
    return experts.write_qwen(spec) | {"use_sliding_window": bool(window), **window}


ROWS = (
    ArchitectureRow("qwen2", "Qwen2ForCausalLM", "qwen2", "qwen2",
                    fixed={"has_attention_bias": True, "has_output_bias": False},
                    keys=_WINDOW_KEYS, read=_read_windows, write=_write_windows),
    ArchitectureRow("qwen3", "Qwen3ForCausalLM", "qwen3", "qwen3", fixed={"qk_norm": "head"},
                    defaults={"head_dim": 128}, keys=_WINDOW_KEYS, read=_read_windows, write=_write_windows),
    ArchitectureRow("qwen2_moe", "Qwen2MoeForCausalLM", "qwen2_moe", "qwen2moe",
                    fixed={"has_attention_bias": True, "has_output_bias": False},
                    defaults={"num_experts_per_tok": 4, "moe_intermediate_size": 1408,
                              "shared_expert_intermediate_size": 5632},
                    keys=_WINDOW_KEYS | experts.QWEN_KEYS | {"qkv_bias"}, harmless=experts.TRAINING_KEYS,
                    read=_read_qwen2_moe, write=_write_qwen2_moe, gguf_keys=experts.QWEN_GGUF_KEYS,
                    read_gguf=partial(experts.read_qwen_gguf, has_shared=True, is_normalised=False)),
    ArchitectureRow("qwen3_moe", "Qwen3MoeForCausalLM", "qwen3_moe", "qwen3moe", fixed={"qk_norm": "head"},
                    defaults={"num_experts_per_tok": 8, "moe_intermediate_size": 768},
                    keys=_WINDOW_KEYS | experts.QWEN_KEYS, harmless=experts.TRAINING_KEYS,
                    required={"use_qk_norm": (True,), "qkv_bias": (False,),
                              "shared_expert_intermediate_size": (0,)},
                    read=_read_qwen3_moe, write=_write_qwen3_moe, gguf_keys=experts.QWEN_GGUF_KEYS,
                    read_gguf=partial(experts.read_qwen_gguf, has_shared=False, is_normalised=True)),
)
