"""Phi-3, Phi-3.5, Phi-4 and Phi-4-mini. Read as in transformers 5.23 (`Phi3Config`); GGUF keys as llama.cpp's
converter writes them (`Phi3MiniModel`)."""

from __future__ import annotations

from openhearth.spec.architectures.records import ArchitectureRow, Settings
from openhearth.spec.architectures.rotary import read_rotary_dim
from openhearth.spec.architectures.windows import read_window, write_window
from openhearth.spec.fields import Fields
from openhearth.spec.records import ModelSpec


def _read(config: Fields, settings: Settings) -> Settings:
    return read_rotary_dim(config, settings) | read_window(config, settings)


def _read_gguf(model: Fields, settings: Settings) -> Settings:
    """A window of 0 is none."""
    size = model.integer("attention.sliding_window", 0, 1 << 28, 0)
    return {"windows": (size,) * settings["num_layers"]} if size else {}


def _write(spec: ModelSpec) -> Settings:
    return {**write_window(spec), "original_max_position_embeddings": spec.rope.original_max_position}


ROWS = (
    ArchitectureRow("phi3", "Phi3ForCausalLM", "phi3", "phi3",
                    defaults={"max_position_embeddings": 4096, "original_max_position_embeddings": 4096,
                              "rms_norm_eps": 1e-5},
                    keys=frozenset({"partial_rotary_factor", "sliding_window"}),
                    required={"attention_bias": (False,), "mlp_bias": (False,), "lm_head_bias": (False,),
                              "full_attn_mod": (1,), "interpolate_factor": (1,)},
                    own_modules=frozenset({"configuration_phi3", "modeling_phi3"}),
                    rope_names={"su": "longrope", "yarn": "longrope"}, read=_read,
                    gguf_keys=frozenset({"rope.dimension_count", "attention.sliding_window"}),
                    read_gguf=_read_gguf, write=_write,
                    linears=("qkv_proj", "o_proj", "gate_up_proj", "down_proj")),
)
