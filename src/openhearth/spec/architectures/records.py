"""A row of the table of architectures: what a configuration of one `model_type` says and how it is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from openhearth.spec.fields import Fields
from openhearth.spec.records import ModelSpec

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Matrices of a plain layer, as checkpoints name them."""

Settings = dict[str, Any]
"""Fields of a ModelSpec by name."""


def read_nothing(config: Fields, settings: Settings) -> Settings:
    """Return no further fields."""
    return {}


def write_nothing(spec: ModelSpec) -> Settings:
    """Return no further keys."""
    return {}


@dataclass(frozen=True)
class ArchitectureRow:
    """How the headers of one architecture become a ModelSpec, and a ModelSpec a `config.json`.

    model_type: of `config.json`. class_name: of transformers, for `architectures`. module: the file in
    `models/` that has the forward. gguf: name in GGUF headers, "" where GGUF has none. fixed: fields of the
    spec that are the same for every model of this type. defaults: of `config.json` keys, where they differ
    from Llama's (transformers' configuration class). keys: `config.json` keys that `read` reads besides
    Llama's. required: keys that must have one of some values. harmless: keys that change nothing.
    own_modules: of the code that its publishers put beside the weights before transformers had it; what it
    computes is what the module here does.
    rope_names: names of rotary types that mean another one here. rope_keys: keys among the rotary settings
    that `read` reads or that change nothing. read: further fields of the spec from
    `config.json`, given those read so far. gguf_keys: header keys, without the architecture's prefix, that
    `read_gguf` reads besides Llama's. write: further keys of `config.json` for a spec. linears: matrices of a
    layer that an adapter can sit beside.
    Example: ``ArchitectureRow("qwen3", "Qwen3ForCausalLM", "qwen3", "qwen3", fixed={"qk_norm": "head"})``.
    """

    model_type: str
    class_name: str
    module: str
    gguf: str = ""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    keys: frozenset[str] = frozenset()
    required: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    harmless: frozenset[str] = frozenset()
    own_modules: frozenset[str] = frozenset()
    rope_names: Mapping[str, str] = field(default_factory=dict)
    rope_keys: frozenset[str] = frozenset()
    read: Callable[[Fields, Settings], Settings] = read_nothing
    gguf_keys: frozenset[str] = frozenset()
    gguf_required: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    read_gguf: Callable[[Fields, Settings], Settings] = read_nothing
    write: Callable[[ModelSpec], Settings] = write_nothing
    linears: tuple[str, ...] = LINEARS

    @property
    def has_experts(self) -> bool:
        """Whether GGUF headers of this row count experts."""
        return "expert_count" in self.gguf_keys
