"""Sampling settings as people type them: names, types, ranges checked by the engine itself."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from openhearth.errors import UsageError

SETTINGS: dict[str, tuple[type, str]] = {
    "temperature": (float, "0 is greedy, higher is more varied"),
    "top_k": (int, "keep the K likeliest tokens; 0 is off"),
    "top_p": (float, "keep the likeliest tokens up to this probability; 1 is off"),
    "min_p": (float, "drop tokens below this share of the likeliest; 0 is off"),
    "repetition_penalty": (float, "above 1 makes tokens of prompt and answer less likely"),
    "presence_penalty": (float, "taken from tokens that the answer already has"),
    "frequency_penalty": (float, "taken once per occurrence in the answer"),
    "max_tokens": (int, "longest answer"),
    "seed": (int, "same prompt, settings and seed give the same answer; default draws one"),
    "stop": (str, "texts that end the answer; quote those with spaces"),
}


def check_sampling(settings: Mapping[str, Any]) -> None:
    """Check settings before anything is fetched or loaded. Loads torch.

    Raises: UsageError with the range that was expected.
    """
    from openhearth.engine import Sampling

    for name, value in settings.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UsageError(f"{name} is `{value}`", why="expected a finite number",
                             hint="hearth run --help")
    if any(not text for text in settings.get("stop") or ()):
        raise UsageError("a stop text is empty", why="it would end every answer before its first word")
    Sampling(**{name: value for name, value in settings.items()
                if name not in ("stop", "schema") and value is not None})


def read_schema(path: Path) -> dict[str, Any]:
    """Return the JSON schema in a file. Raises: UsageError, BadFile."""
    from openhearth.chat.grammar import MAX_CHARS, schema_grammar
    from openhearth.formats import read_json

    if not path.is_file():
        raise UsageError(f"`{path}` is no file", why="--schema takes a file with a JSON schema")
    schema = read_json(path, MAX_CHARS)
    schema_grammar(schema)
    return schema


def parse_setting(name: str, words: Sequence[str]) -> tuple[str, Any]:
    """Read ``/set NAME VALUE``; returns the setting's name and value, None for ``default``.

    Raises: UsageError for an unknown name, a value of the wrong type or out of range.
    """
    name = name.replace("-", "_").lower()
    if name not in SETTINGS:
        raise UsageError(f"`{name}` is no setting", why="settings are " + ", ".join(SETTINGS),
                         hint="/set temperature 0.7")
    kind, meaning = SETTINGS[name]
    if not words or (name != "stop" and len(words) > 1):
        raise UsageError(f"{name} takes one value, {len(words)} were given", why=meaning,
                         hint=f"/set {name} default")
    if list(words) == ["default"]:
        return name, None
    if name == "stop":
        value: Any = tuple(words)
    else:
        try:
            value = kind(words[0])
        except ValueError:
            expected = "a whole number" if kind is int else "a number"
            raise UsageError(f"{name} is `{words[0]}`", why=f"expected {expected}: {meaning}",
                             hint=f"/set {name} default") from None
    check_sampling({name: value})
    return name, value
