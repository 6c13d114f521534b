"""What a run leaves behind: an adapter in PEFT's layout, or a whole model in Hugging Face's.

Does not: merge adapters, or write GGUF.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from openhearth.models import Adapter
from openhearth.models.adapter_files import write_adapter
from openhearth.models.tensor_files import write_tensors
from openhearth.tune.weights import adapter_weights

if TYPE_CHECKING:
    from openhearth.tune.jobs import Job

_COPIED = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
           "special_tokens_map.json", "chat_template.jinja")


def write_output(folder: Path, job: Job, model: nn.Module, adapter: Adapter | None) -> None:
    """Write the adapter, or without one the model, into an empty folder; equal weights give equal bytes."""
    settings = job.plan.settings
    if adapter is None:
        _write_model(folder, job, model)
        return
    write_adapter(folder, adapter_weights(adapter, job.plan.lora_scale), rank=settings.lora_rank,
                  alpha=settings.lora_alpha, is_rank_stabilised=settings.is_rank_stabilised,
                  base_model=settings.model, base_weights_sha256=job.stored.weights_sha256)


def _write_model(folder: Path, job: Job, model: nn.Module) -> None:
    for name in _COPIED:
        if (job.checkpoint.path / name).exists():
            shutil.copyfile(job.checkpoint.path / name, folder / name)
    write_tensors(folder / "model.safetensors", dict(model.named_parameters()), {"format": "pt"})
