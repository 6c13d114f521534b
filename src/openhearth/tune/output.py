"""What a run leaves behind: an adapter in PEFT's layout, or a whole model in Hugging Face's.

Does not: merge adapters, or write GGUF.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from openhearth import chat
from openhearth.chat.files import TOKENIZER_MODELS
from openhearth.models import Adapter, find_architecture
from openhearth.models.adapter_files import write_adapter
from openhearth.models.tensor_files import write_tensors
from openhearth.spec import text_part
from openhearth.spec.to_config import config_of
from openhearth.tune.weights import adapter_weights

if TYPE_CHECKING:
    from openhearth.tune.methods.records import Job

_COPIED = ("generation_config.json", "tokenizer.json", "tekken.json", *TOKENIZER_MODELS, "added_tokens.json",
           "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


def write_output(folder: Path, job: Job, model: nn.Module, adapter: Adapter | None) -> None:
    """Write the adapter, or without one the model, into an empty folder; equal weights give equal bytes."""
    settings = job.plan.settings
    if adapter is None:
        _write_model(folder, job, model)
        return
    write_adapter(folder, adapter_weights(adapter, job.plan.lora_scale), rank=settings.lora_rank,
                  alpha=settings.lora_alpha, is_rank_stabilised=settings.is_rank_stabilised,
                  base_model=settings.model, base_weights_sha256=job.opened.stored.weights_sha256)


def _write_model(folder: Path, job: Job, model: nn.Module) -> None:
    is_gguf = job.opened.checkpoint.format == "gguf"
    if is_gguf:
        for name, text in chat.tokenizer_files(job.opened.checkpoint).items():
            (folder / name).write_text(text, encoding="utf-8")
    for name in _COPIED:
        if not is_gguf and (job.opened.checkpoint.path / name).exists():
            shutil.copyfile(job.opened.checkpoint.path / name, folder / name)
    if is_gguf:
        config = config_of(job.opened.spec, dtype=job.plan.settings.dtype)
    else:
        config = text_part(job.opened.checkpoint).config
        kept = {name: value for name, value in config.items()
                if name not in ("torch_dtype", "quantization_config")}
        config = {**kept, "dtype": job.plan.settings.dtype}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    tensors = find_architecture(job.opened.spec.model_type).stored(model.state_dict())
    write_tensors(folder / "model.safetensors", tensors, {"format": "pt"})
