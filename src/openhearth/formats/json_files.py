"""JSON from files that nobody vouches for: bounded in bytes, values and depth, no duplicate keys.

Does not: check what the keys mean; `unsafe.py` refuses those that name code.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from openhearth.errors import BadFile
from openhearth.formats.mapping import damaged, mapped_file
from openhearth.formats.quoting import quoted
from openhearth.units import format_bytes

# A tokenizer with 262,144 tokens and 514,906 merges written as pairs has about 2.3 million values.
MAX_VALUES = 8_000_000
MAX_DEPTH = 64
MAX_BYTES = 64 << 20

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


class _DuplicateKey(Exception):
    pass


def read_json(path: Path, max_bytes: int = MAX_BYTES) -> Any:
    """Return the value of a JSON file of at most max_bytes.

    Raises: ModelNotFound when there is no file, BadFile when it is too large, not UTF-8, not JSON,
    nested deeper than 64, holds more than 8 million values, or names a key twice in one object.
    """
    with mapped_file(path) as mapping:
        if len(mapping) > max_bytes:
            size, limit = format_bytes(len(mapping)), format_bytes(max_bytes)
            raise damaged(f"{quoted(path)} has {size}, the limit is {limit}",
                          "files of this kind are small; this one is damaged or made to fill the memory")
        raw = mapping[:]
    return parse_json(raw, path)


def read_json_object(path: Path, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """As `read_json`, for files that hold one object. Raises: also BadFile for another kind of value."""
    value = read_json(path, max_bytes)
    if not isinstance(value, dict):
        raise damaged(f"{quoted(path)} holds a JSON {type(value).__name__}", "expected an object")
    return value


def parse_json(raw: bytes, path: Path, what: str = "file", *, max_values: int = MAX_VALUES) -> Any:
    """Return the value of JSON bytes; path and what only name them in messages.

    Every value but the first of its container follows a comma, so commas and brackets bound the
    number of values before anything is built. Raises: BadFile, as `read_json`.
    """
    num_values = raw.count(b",") + raw.count(b"[") + raw.count(b"{")
    if num_values > max_values:
        raise damaged(f"the JSON {what} of {quoted(path)} holds up to {num_values} values",
                      f"the limit is {max_values}")
    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=_object)
        if _SURROGATE.search(raw):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except _DuplicateKey as error:
        raise damaged(f"the JSON {what} of {quoted(path)} names the key {quoted(error)} twice",
                      "readers would disagree about which one counts") from None
    except RecursionError:
        raise _too_deep(path, what) from None
    except ValueError as error:  # UnicodeError and JSONDecodeError are ValueErrors
        raise damaged(f"the JSON {what} of {quoted(path)} cannot be read", _reason(error)) from None
    if _depth_exceeds(value, MAX_DEPTH):
        raise _too_deep(path, what)
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    built = dict(pairs)
    if len(built) != len(pairs):
        seen = set()
        raise _DuplicateKey(next(key for key, _ in pairs if key in seen or seen.add(key)))
    return built


def _reason(error: ValueError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at line {error.lineno} column {error.colno}"
    if isinstance(error, UnicodeError):
        return "the text is not valid UTF-8"
    return "a number has too many digits"


def _too_deep(path: Path, what: str) -> BadFile:
    return damaged(f"the JSON {what} of {quoted(path)} is nested deeper than {MAX_DEPTH} levels")


def _depth_exceeds(value: Any, limit: int) -> bool:
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(limit):
        level = [child for container in level
                 for child in (container.values() if isinstance(container, dict) else container)
                 if isinstance(child, dict | list)]
        if not level:
            return False
    return bool(level)
