"""Tiny random models of every architecture, built with transformers: one file per family, cases by name.

Each module has CASES: name -> Case. `build` writes one as a checkpoint of Hugging Face's layout and returns
the model of transformers; `build_gguf` writes that as GGUF with the names of the `gguf` package.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TINY = dict(vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512, rms_norm_eps=1e-5,
            bos_token_id=1, eos_token_id=2, pad_token_id=0, tie_word_embeddings=False,
            attn_implementation="eager")


@dataclass(frozen=True)
class Case:
    """One tiny model. settings: of its configuration, besides TINY. without: options this case exercises;
    with these settings instead the logits must differ. gguf: architecture's name there, "" for none.
    gguf_map: architecture whose map of names is used, where the `gguf` package does not know this one yet.
    gguf_metadata: header keys besides the common ones, from the configuration. gguf_tensors: tensors by
    name as the converter stores them, from (configuration, tensors). more_tolerance: factor of 1e-4, with
    the reason beside it. written_as: the `model_type` of the written configuration, where it is another one.
    """

    model_type: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    without: Mapping[str, Any] = field(default_factory=dict)
    gguf: str = ""
    gguf_map: str = ""
    gguf_metadata: Callable[[dict], dict] = lambda config: {}
    gguf_tensors: Callable[[dict, dict], dict] = lambda config, tensors: tensors
    more_tolerance: float = 1.0
    written_as: str = ""


def all_cases() -> dict[str, Case]:
    """Return the cases of every file here, by name."""
    found = {}
    for module in pkgutil.iter_modules(__path__):
        found |= importlib.import_module(f"{__name__}.{module.name}").CASES
    return found


def build(folder: Path, case: Case, *, seed: int = 0, **changes):
    """Write a case's random weights and configuration; return the model of transformers, fp32, eval."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(case.model_type, **{**TINY, **case.settings, **changes})
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for name, parameter in model.named_parameters():
        # The library's own initialisation (std 0.02, zero biases, unit norms) hides mistakes.
        shift = 1.0 if "norm" in name and not hasattr(config, "query_pre_attn_scalar") else 0.0
        parameter.data.normal_(0, 0.1).add_(shift)
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):  # zeros, which correct nothing
            buffer.normal_(0, 0.3)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    if case.written_as:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": case.written_as}))
    return model


def build_gguf(folder: Path, path: Path, case: Case, quant: str = "F32") -> Path:
    """Write the checkpoint in folder as GGUF, named by the `gguf` package's own map of tensors.

    quant: type of matrices and stacks of them; routers and vectors stay F32.
    """
    import gguf
    import numpy as np
    from safetensors.torch import load_file

    config = json.loads((folder / "config.json").read_text())
    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == (case.gguf_map or case.gguf))
    rope = config.get("rope_parameters") or {}
    values = {
        "block_count": config["num_hidden_layers"], "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"], "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        "rope.freq_base": float(rope.get("rope_theta", 10000.0)), "vocab_size": config["vocab_size"]}
    if config.get("head_dim"):
        values |= {"attention.key_length": config["head_dim"], "attention.value_length": config["head_dim"]}
    values |= case.gguf_metadata(config)
    names = gguf.get_tensor_name_map(arch, values["block_count"])
    writer = gguf.GGUFWriter(path, case.gguf)
    add = {str: writer.add_string, bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32,
           list: writer.add_array}
    for key, value in values.items():
        if value is not None:
            add[type(value)](f"{case.gguf}.{key}", value)
    tensors = {name: tensor.float().numpy()
               for name, tensor in load_file(folder / "model.safetensors").items()}
    if config["tie_word_embeddings"]:
        tensors.pop("lm_head.weight", None)
    for name, array in case.gguf_tensors(config, tensors).items():
        stored = names.get_name(name, try_suffixes=(".weight", ".bias")) or name
        kind = gguf.GGMLQuantizationType[quant if array.ndim > 1 and "ffn_gate_inp" not in stored else "F32"]
        blocks = gguf.quants.quantize(np.ascontiguousarray(array.astype(np.float32)), kind)
        writer.add_tensor(stored, blocks, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
