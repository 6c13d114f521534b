"""The Hugging Face hub cache, read in place: `models--o--n/refs/<revision>`, `snapshots/<commit>/`.

The layout is that of huggingface_hub (documentation, "Understand caching"). A snapshot whose weights
or configuration are missing, as an interrupted download leaves it, is not used.

Does not: write to the cache, or trust a file's name for its hash.
"""

from __future__ import annotations

import fnmatch
import json
import re
from dataclasses import dataclass
from pathlib import Path

from openhearth.hub.records import Ref

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHARD = re.compile(r"(?P<stem>.+)-(?P<no>\d{5})-of-(?P<count>\d{5})\.(?:gguf|safetensors)")
_MAX_INDEX_BYTES = 64 << 20


@dataclass(frozen=True)
class CachedSnapshot:
    """A complete model in the cache. path: a GGUF file or a folder; commit: the resolved revision."""

    path: Path
    commit: str


def find_snapshot(ref: Ref, cache: Path) -> CachedSnapshot | None:
    """Return the cached model of a hub reference, None when it is absent or incomplete."""
    repository = cache / f"models--{ref.location.replace('/', '--')}"
    commit = _resolve(repository, ref.revision or "main")
    if commit is None:
        return None
    folder = repository / "snapshots" / commit
    path = _chosen(folder, ref.file) if ref.file else folder
    if path is None or not (is_complete(path) if path.is_dir() else path.is_file()):
        return None
    return CachedSnapshot(path, commit)


def is_complete(folder: Path) -> bool:
    """Whether a folder has all weight files that its names promise, and a config.json if it needs one.

    Only names, links and the index are looked at; what the files hold is the readers' business.
    """
    names = {path.name for path in folder.iterdir() if path.is_file()} if folder.is_dir() else set()
    ggufs = {name for name in names if name.endswith(".gguf")}
    safetensors = {name for name in names if name.endswith(".safetensors")}
    if safetensors or "model.safetensors.index.json" in names:
        return "config.json" in names and _promised(folder, names) <= names
    return bool(ggufs) and shards_of(ggufs) <= names


def shards_of(names: set[str]) -> set[str]:
    """Return the names of all parts of the split files among names."""
    promised = set()
    for name in names:
        match = _SHARD.fullmatch(name)
        if match:
            suffix = name.rsplit(".", 1)[1]
            promised |= {f"{match['stem']}-{i:05}-of-{match['count']}.{suffix}"
                         for i in range(1, int(match["count"]) + 1)}
    return promised


def _promised(folder: Path, names: set[str]) -> set[str]:
    if "model.safetensors" in names:
        return set()
    index = folder / "model.safetensors.index.json"
    try:
        if index.stat().st_size > _MAX_INDEX_BYTES:
            return {index.name + " (too large)"}
        weight_map = json.loads(index.read_bytes())["weight_map"]
        return {str(name) for name in weight_map.values()}
    except FileNotFoundError:
        return {index.name}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {index.name + " (unreadable)"}


def _resolve(repository: Path, revision: str) -> str | None:
    """Return the commit of a branch, tag or commit as the cache last saw it."""
    if _COMMIT.fullmatch(revision):
        return revision
    refs = repository / "refs"
    path = refs / revision
    if ".." in path.parts or not path.is_relative_to(refs):
        return None
    try:
        with open(path, "rb") as file:
            commit = file.read(64).decode("ascii", "replace").strip()
    except OSError:
        return None
    return commit if _COMMIT.fullmatch(commit) else None


def _chosen(folder: Path, pattern: str) -> Path | None:
    """Return the one file a reference names: the file itself, or the first part of one split file."""
    if not any(sign in pattern for sign in "*?["):
        path = folder / pattern
        names = {sibling.name for sibling in path.parent.glob("*.gguf") if sibling.is_file()}
        return path if shards_of({path.name}) <= names else None
    found = sorted(path for path in folder.rglob("*") if path.is_file()
                   and fnmatch.fnmatchcase(path.relative_to(folder).as_posix(), pattern))
    if not found or len({_SHARD.sub(r"\g<stem>", path.name) for path in found}) != 1:
        return None
    names = {path.name for path in found}
    return found[0] if shards_of(names) <= names else None
