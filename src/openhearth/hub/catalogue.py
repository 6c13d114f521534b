"""Short names: which file a name means, pinned by hash, and where it can be had.

The package's own `catalogue.toml`, plus `catalogue.toml` in the store's folder for names of one's
own; an own entry replaces the package's of the same name.

Does not: reach any source, or say what is on disk.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from openhearth.config import Config
from openhearth.errors import BadFile, UsageError
from openhearth.hub.manifest import DIGEST
from openhearth.hub.records import StoredModel
from openhearth.hub.refs import check_relative_path, parse_ref

DEFAULT_MODEL = "smollm2"
_KEYS = {"description", "licence", "file", "size", "sha256", "sources", "sampling"}
_SAMPLING = {"temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty",
             "frequency_penalty"}
_MAX_BYTES = 1 << 20
_PACKAGED = Path(__file__).with_name("catalogue.toml")


@dataclass(frozen=True)
class CatalogueEntry:
    """One short name.

    file: what the weight file is called. size in bytes. sources: references, tried in order.
    sampling: settings that the model's authors recommend, by the names of `engine.Sampling`.
    Example: ``load_catalogue(config)["smollm2"].size == 98362432``.
    """

    name: str
    file: str
    size: int
    sha256: str
    sources: tuple[str, ...]
    description: str = ""
    licence: str | None = None
    sampling: Mapping[str, float] = field(default_factory=dict)


def load_catalogue(config: Config) -> dict[str, CatalogueEntry]:
    """Return all short names, the store's own included.

    Raises: BadFile when a catalogue is not valid TOML or an entry is malformed.
    """
    entries = _read(_PACKAGED)
    own = config.home / "catalogue.toml"
    if own.is_file():
        entries.update(_read(own))
    return entries


def recommended_sampling(stored: StoredModel, config: Config) -> dict[str, float]:
    """Return the sampling that a model's authors recommend, by the names of `engine.Sampling`.

    A model is recognised by its weights' hash, whatever it is called here; empty when none is known.
    Raises: BadFile as `load_catalogue`.
    """
    for entry in load_catalogue(config).values():
        if entry.sha256 == stored.weights_sha256:
            return dict(entry.sampling)
    return {}


def _read(path: Path) -> dict[str, CatalogueEntry]:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise BadFile(f"`{path}` is larger than {_MAX_BYTES} bytes")
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BadFile(f"`{path}` cannot be read", why=str(error), hint=f"correct or remove {path}") from None
    return {name: _entry(path, name, table) for name, table in tables.items()}


def _entry(path: Path, name: str, table: Any) -> CatalogueEntry:
    def expect(condition: bool, reason: str) -> None:
        if not condition:
            raise BadFile(f"entry `{name}` of `{path}` is malformed", why=reason,
                          hint="compare with `smollm2` in the package's hub/catalogue.toml")

    expect(isinstance(table, dict), "expected a table")
    expect(not set(table) - _KEYS, f"unknown keys: {', '.join(sorted(set(table) - _KEYS))}")
    expect(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}", name) is not None,
           "a short name has letters, digits, `.`, `_` and `-`")
    size, digest, sources = table.get("size"), table.get("sha256"), table.get("sources")
    expect(type(size) is int and size > 0, "`size` must be a number of bytes")
    expect(isinstance(digest, str) and DIGEST.fullmatch(digest) is not None,
           "`sha256` must be 64 hexadecimal digits, lower case")
    expect(isinstance(sources, list) and bool(sources) and all(isinstance(text, str) for text in sources),
           "`sources` must be a list of references")
    expect(all(isinstance(table.get(key, ""), str) for key in ("file", "description", "licence")),
           "`file`, `description` and `licence` must be text")
    sampling = table.get("sampling", {})
    expect(isinstance(sampling, dict) and all(type(value) in (int, float) for value in sampling.values())
           and not set(sampling) - _SAMPLING, f"`sampling` may have {', '.join(sorted(_SAMPLING))}")
    try:
        file = check_relative_path(table.get("file", ""))
        kinds = [parse_ref(text).kind for text in sources]
    except UsageError as error:
        expect(False, error.what)
    expect(set(kinds) <= {"hub", "index", "https"}, "a source must be hub:, index: or https:")
    return CatalogueEntry(name=name, file=file, size=size, sha256=digest, sources=tuple(sources),
                          description=table.get("description", ""), licence=table.get("licence"),
                          sampling=dict(sampling))
