"""A stored model's manifest: which blobs make it up, where they came from.

Written last, so a model is visible when it is complete and not before.

Does not: touch the disk; `store.py` does.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote

from openhearth.errors import BadFile, Unsupported, UsageError
from openhearth.hub.refs import check_relative_path

SCHEMA = 1
MAX_MANIFEST_BYTES = 16 << 20
DIGEST = re.compile(r"[0-9a-f]{64}")
_LONGEST_STEM = 200


@dataclass(frozen=True)
class StoredFile:
    """One file of a stored model; size in bytes."""

    sha256: str
    size: int


@dataclass(frozen=True)
class Manifest:
    """What the store knows of one model.

    files: relative path -> blob. weights: which of them are weight files. source: canonical
    reference that the bytes came from. pulled_at: UTC, "2026-07-30T12:00:00Z".
    Example: ``Manifest("m", {"m.gguf": StoredFile("00" * 32, 4)}, ("m.gguf",), "https://x/m.gguf", "")``.
    """

    name: str
    files: Mapping[str, StoredFile]
    weights: tuple[str, ...]
    source: str
    pulled_at: str
    revision: str | None = None
    licence: str | None = None

    @property
    def num_bytes(self) -> int:
        """Bytes of all files; equal files count once each time they are named."""
        return sum(file.size for file in self.files.values())

    @property
    def digests(self) -> dict[str, str]:
        """sha256 of every file, by path."""
        return {path: file.sha256 for path, file in self.files.items()}

    @property
    def weights_sha256(self) -> str:
        """One hash for the model's weight files."""
        return weights_sha256({path: self.files[path].sha256 for path in self.weights})

    @property
    def snapshot_key(self) -> str:
        """sha256 of the file list: models with the same files share one folder of links."""
        lines = sorted(f"{file.sha256}  {path}\n" for path, file in self.files.items())
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def to_json(self) -> bytes:
        """Return the bytes of the manifest's file."""
        record = {"schema": SCHEMA, "name": self.name, "source": self.source, "revision": self.revision,
                  "licence": self.licence, "pulled_at": self.pulled_at, "weights": sorted(self.weights),
                  "files": {path: {"sha256": file.sha256, "size": file.size}
                            for path, file in sorted(self.files.items())}}
        return (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode()


def weights_sha256(digests: Mapping[str, str]) -> str:
    """Return one hash for a model's weight files (`StoredModel.weights_sha256`)."""
    if len(digests) == 1:
        return next(iter(digests.values()))
    lines = sorted(f"{digest}  {path}\n" for path, digest in digests.items())
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def file_stem(name: str) -> str:
    """Return a model name as a file name: readable, reversible when short, never a path."""
    stem = quote(name, safe="")
    if len(stem) > _LONGEST_STEM or stem.startswith("."):
        return f"{stem.lstrip('.')[:80]}~{hashlib.sha256(name.encode()).hexdigest()[:32]}"
    return stem


def name_from_stem(stem: str) -> str:
    """Return the model name of an unreadable manifest, as far as its file name tells."""
    return unquote(stem)


def parse_manifest(name: str, raw: bytes) -> Manifest:
    """Read a manifest; nothing in it is trusted before it is checked.

    Raises: Unsupported for another schema version, BadFile for anything malformed.
    """
    try:
        record = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise damaged(name, f"its manifest is no JSON: {error}") from None
    if not isinstance(record, dict):
        raise damaged(name, "its manifest is no JSON object")
    schema = record.get("schema")
    if type(schema) is not int:
        raise damaged(name, "its manifest has no schema version")
    if schema != SCHEMA:
        raise Unsupported(f"the manifest of `{name}` has schema version {schema}",
                          why=f"this version reads {SCHEMA}; another version of openhearth wrote it",
                          hint="use that version, or another store with HEARTH_HOME")
    try:
        return _build(name, record)
    except (KeyError, TypeError, ValueError, AttributeError, UsageError) as error:
        raise damaged(name, f"its manifest is malformed: {error}") from None


def damaged(name: str, reason: str) -> BadFile:
    """Return the error for a stored model that cannot be used as it is."""
    return BadFile(f"the stored model `{name}` is damaged", why=reason, hint=f"hearth pull {name}")


def digests_in(raw: bytes) -> set[str]:
    """Return everything that looks like a digest: what even an unreadable manifest may refer to."""
    return {match.decode() for match in re.findall(rb"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])", raw)}


def _build(name: str, record: Mapping[str, Any]) -> Manifest:
    if record["name"] != name:
        raise ValueError(f"it is that of `{record['name']}`")
    files = {}
    for path, entry in record["files"].items():
        check_relative_path(path)
        digest, size = entry["sha256"], entry["size"]
        if not isinstance(digest, str) or not DIGEST.fullmatch(digest) or type(size) is not int or size < 0:
            raise ValueError(f"hash or size of `{path}`")
        files[path] = StoredFile(digest, size)
    check_no_file_is_a_folder(files)
    weights = tuple(sorted(record["weights"]))
    if not files or not weights or not set(weights) <= set(files):
        raise ValueError("it names no files, or weights that it does not have")
    texts = [record["source"], record["pulled_at"], record["revision"] or "", record["licence"] or ""]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("source, date, revision or licence is no text")
    return Manifest(name, files, weights, record["source"], record["pulled_at"], record["revision"],
                    record["licence"])


def check_no_file_is_a_folder(paths: Iterable[str]) -> None:
    """Raise UsageError when one path would be both a file and a folder."""
    known = set(paths)
    for path in known:
        parts = path.split("/")
        for i in range(1, len(parts)):
            if "/".join(parts[:i]) in known:
                raise UsageError(f"`{path}` lies below a file")
