"""Which class runs which `model_type`, and how its weights are named in each format."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from openhearth.errors import Unsupported
from openhearth.models import llama
from openhearth.spec import ModelSpec


@dataclass(frozen=True)
class Architecture:
    """One row of the table.

    build: makes the module from a spec. gguf_name: parameter name -> GGUF tensor name.
    gguf_rotary_heads: number of heads whose rows GGUF reorders, else None. ignored: regular
    expressions of tensors that old checkpoints carry and that are computed, not loaded.
    """

    build: Callable[[ModelSpec], nn.Module]
    gguf_name: Callable[[str], str]
    gguf_rotary_heads: Callable[[str, ModelSpec], int | None]
    ignored: tuple[str, ...] = ()


ARCHITECTURES = {
    "llama": Architecture(llama.Llama, llama.gguf_name, llama.gguf_rotary_heads,
                          ignored=(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",)),
}


def find_architecture(model_type: str) -> Architecture:
    """Return the table's row. Raises: Unsupported, naming what there is."""
    if model_type not in ARCHITECTURES:
        raise Unsupported(f"no architecture named `{model_type}`",
                          why=f"this version runs: {', '.join(ARCHITECTURES)}", hint="hearth run smollm2")
    return ARCHITECTURES[model_type]
