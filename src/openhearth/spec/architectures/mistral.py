"""Mistral, Ministral, Ministral 3 and Mixtral.

Read as in transformers 5.23 (`MistralConfig`, `MinistralConfig`, `Ministral3Config`, `MixtralConfig`); GGUF
keys as llama.cpp's converter writes them (`Mistral3Model`). What a `mistral3` folder holds besides text is
left out by `spec/text_part.py`.
"""

from __future__ import annotations

from dataclasses import replace

from openhearth.errors import Unsupported
from openhearth.spec.architectures import experts
from openhearth.spec.architectures.records import ArchitectureRow, Settings
from openhearth.spec.architectures.rotary import rope_fields
from openhearth.spec.architectures.windows import read_window, windows_of_config, write_window, write_windows
from openhearth.spec.fields import Fields
from openhearth.spec.records import ModelSpec


def _read_windows(config: Fields, settings: Settings) -> Settings:
    """Without `layer_types` every layer has the window, if there is one."""
    if not config.has("layer_types"):
        return read_window(config, settings)
    return {"windows": windows_of_config(config, settings["num_layers"])}


def _write_windows(spec: ModelSpec) -> Settings:
    """Transformers 5.23 makes a mask of a window even where no layer has one, and fails without a size."""
    size = max(spec.windows, default=0) or spec.max_position
    return {**write_windows(spec), "sliding_window": size}


def _read_mixtral(config: Fields, settings: Settings) -> Settings:
    return read_window(config, settings) | {"moe": experts.read_mixtral(config, settings)}


def _write_mixtral(spec: ModelSpec) -> Settings:
    return write_window(spec) | {"num_local_experts": spec.moe.num_experts,
                                  "num_experts_per_tok": spec.moe.num_chosen}


def _read_ministral3(config: Fields, settings: Settings) -> Settings:
    """Queries grow with every original context of yarn; a default would hide what the model was made with."""
    if settings["rope"].type != "yarn":
        raise Unsupported(f"{config.source} wants rotary scaling `{settings['rope'].type}`",
                          why="a ministral3 model counts its contexts by that of yarn",
                          hint="fetch the model again with `hearth pull`")
    growth = rope_fields(config).number("llama_4_scaling_beta", 0.0, 1e3)
    return {"query_growth": growth, **read_window(config, settings)}


def _read_ministral3_gguf(model: Fields, settings: Settings) -> Settings:
    """`mistral3` files without growing queries are of models that compute what Llama does (Mistral Small 3).

    The multiplier of yarn's logarithm stands for `mscale` and `mscale_all_dim`, which are equal.
    """
    if not model.has("attention.temperature_scale"):
        model.require({"rope.scaling.yarn_log_multiplier": (0,)})
        return {"model_type": "llama"}
    multiplier = model.number("rope.scaling.yarn_log_multiplier", 0.0, 1e6, 0.0) or None
    rope = replace(settings["rope"], mscale=multiplier, mscale_all_dim=multiplier)
    return {"query_growth": model.number("attention.temperature_scale", 0.0, 1e3), "rope": rope}


ROWS = (
    ArchitectureRow("mistral", "MistralForCausalLM", "mistral", keys=frozenset({"sliding_window"}),
                    read=read_window, write=write_window),
    ArchitectureRow("mixtral", "MixtralForCausalLM", "mixtral", "llama",
                    defaults={"num_local_experts": 8, "rms_norm_eps": 1e-5, "rope_theta": 1000000.0,
                              "max_position_embeddings": 131072},
                    keys=experts.KEYS | {"sliding_window"}, harmless=experts.TRAINING_KEYS,
                    read=_read_mixtral, write=_write_mixtral,
                    gguf_keys=experts.GGUF_KEYS, read_gguf=experts.read_mixtral_gguf),
    ArchitectureRow("ministral", "MinistralForCausalLM", "mistral",
                    keys=frozenset({"sliding_window", "layer_types"}),
                    required={"attention_bias": (False,), "mlp_bias": (False,)},
                    read=_read_windows, write=_write_windows),
    ArchitectureRow("ministral3", "Ministral3ForCausalLM", "llama", "mistral3", defaults={"head_dim": 128},
                    keys=frozenset({"sliding_window"}),
                    rope_keys=frozenset({"llama_4_scaling_beta", "max_position_embeddings"}),
                    required={"attention_bias": (False,), "mlp_bias": (False,)}, read=_read_ministral3,
                    gguf_keys=frozenset({"attention.temperature_scale",
                                         "rope.scaling.yarn_log_multiplier"}),
                    read_gguf=_read_ministral3_gguf, write=write_window),
)
