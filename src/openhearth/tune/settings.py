"""Settings of a tuning run: what people may say, and where a recipe says it.

Every field that is None is derived (`derive.py`) and printed with its reason.
"""

from __future__ import annotations

import difflib
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from openhearth.errors import ModelNotFound, UsageError
from openhearth.tune import schedule

LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class SftSettings:
    """Supervised fine-tuning.

    model: as for `hearth run`. data: files of rows (`data/rendering.py`). out: the run's name.
    eval_data: files whose loss is measured before and after. weights: "lora" trains small matrices beside
    the linear layers, "full" all weights. lora_rank: inner size of those matrices. lora_alpha: what they add
    is scaled by alpha / rank, with is_rank_stabilised by alpha / sqrt(rank). lora_layers: which linear
    layers. dtype: numbers of the weights and activations; masters and optimizer are float32.
    chat: prompt and completion become messages of a chat. max_tokens: longest sample. batch_size: samples
    per step. pack_tokens: tokens of one forward; a step adds up several. epochs: passes over the data;
    steps: their number instead. warmup: share of the steps. weight_decay, clip, beta2: AdamW's.
    recompute: activations of a layer are computed again on the way back instead of kept.
    checkpoint_every: steps. Example: ``SftSettings("smollm2", ("train.jsonl",), "polite")``.
    """

    model: str
    data: tuple[str, ...]
    out: str
    eval_data: tuple[str, ...] = ()
    seed: int = 0
    weights: Literal["lora", "full"] = "lora"
    lora_rank: int | None = None
    lora_alpha: float | None = None
    is_rank_stabilised: bool = False
    lora_layers: tuple[str, ...] = LAYERS
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    chat: bool | None = None
    max_tokens: int | None = None
    batch_size: int = 8
    pack_tokens: int | None = None
    epochs: float = 1.0
    steps: int | None = None
    learning_rate: float | None = None
    schedule: Literal["cosine", "linear", "wsd", "constant"] = "cosine"
    warmup: float = 0.03
    weight_decay: float = 0.0
    clip: float = 1.0
    beta2: float = 0.999
    recompute: bool | None = None
    checkpoint_every: int = 50
    threads: int | None = None

    def __post_init__(self) -> None:
        """Raises: UsageError for a value out of range, naming the setting."""
        if not self.data:
            raise UsageError("there is no data", hint="--data train.jsonl")
        ranges = {"lora_rank": 1, "max_tokens": 2, "batch_size": 1, "pack_tokens": 2, "steps": 1,
                  "checkpoint_every": 1, "threads": 1}
        for name, least in ranges.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise UsageError(f"{name} is `{value}`", why=f"expected {least} or more")
        for name in ("lora_alpha", "epochs", "learning_rate"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise UsageError(f"{name} is `{value}`", why="expected a number above 0")
        for name, top in (("warmup", 1), ("beta2", 1), ("weight_decay", 10), ("clip", float("inf"))):
            if not 0 <= getattr(self, name) < top:
                raise UsageError(f"{name} is `{getattr(self, name)}`", why=f"expected 0 to {top}")
        if self.schedule not in schedule.KINDS:
            raise UsageError(f"schedule is `{self.schedule}`", why=f"expected {', '.join(schedule.KINDS)}")
        for layer in self.lora_layers:
            if layer not in LAYERS:
                raise UsageError(f"lora_layers names `{layer}`", why=f"expected some of {', '.join(LAYERS)}")


METHODS: Mapping[str, type] = {"sft": SftSettings}


def read_recipe(path: Path) -> dict[str, Any]:
    """Return the keys of a recipe; paths of data are relative to the recipe's folder.

    Raises: ModelNotFound, UsageError when it is no TOML or names no method.
    """
    try:
        recipe = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelNotFound(f"there is no recipe `{path}`",
                            hint="hearth tune sft MODEL --data FILE") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"`{path}` is not TOML", why=str(error)) from None
    if recipe.get("method") not in METHODS:
        raise UsageError(f"the recipe `{path}` has method `{recipe.get('method', '')}`",
                         why=f"expected one of: {', '.join(METHODS)}", hint='method = "sft"')
    for name in ("data", "eval_data"):
        files = recipe.get(name, [])
        files = [files] if isinstance(files, str) else files
        if name in recipe and isinstance(files, list):
            recipe[name] = [str(path.parent / file) for file in files]
    return recipe


def build_settings(method: str, given: Mapping[str, Any]) -> Any:
    """Return the settings of a method from keys of a recipe or flags; None counts as not given.

    Raises: UsageError for an unknown method or key, with the nearest name, or a value of a wrong type.
    """
    if method not in METHODS:
        near = difflib.get_close_matches(method, METHODS, 1)
        raise UsageError(f"`{method}` is no way of tuning", why=f"this version has: {', '.join(METHODS)}",
                         hint=f"hearth tune {near[0] if near else 'sft'} MODEL --data FILE --out NAME")
    kind = METHODS[method]
    hints = typing.get_type_hints(kind)
    values = {}
    for name, value in given.items():
        if name not in hints:
            near = difflib.get_close_matches(name, hints, 1)
            raise UsageError(f"there is no setting `{name}`", why=f"there are: {', '.join(hints)}",
                             hint=f"did you mean `{near[0]}`?" if near else "")
        if value is not None:
            values[name] = _converted(name, value, hints[name])
    needed = [field.name for field in fields(kind) if field.name in ("model", "data", "out")]
    if missing := [name for name in needed if name not in values]:
        raise UsageError(f"{', '.join(missing)} must be said",
                         hint=f"hearth tune {method} MODEL --data FILE --out NAME")
    return kind(**values)


def _converted(name: str, value: Any, hint: Any) -> Any:
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for kind in kinds:
        if typing.get_origin(kind) is Literal and value in typing.get_args(kind):
            return value
        if typing.get_origin(kind) is tuple:
            listed = [value] if isinstance(value, str) else value
            if isinstance(listed, list | tuple) and all(isinstance(item, str) for item in listed):
                return tuple(listed)
        if kind is float and type(value) in (int, float):
            return float(value)
        if isinstance(kind, type) and type(value) is kind:
            return value
    expected = [str(typing.get_args(kind)) if typing.get_origin(kind) is Literal
                else getattr(kind, "__name__", str(kind)) for kind in kinds if kind is not type(None)]
    raise UsageError(f"{name} is `{value}`", why=f"expected {' or '.join(expected)}")
