"""What interrupted pulls leave behind: listed as resumable, removed only on request.

A pull writes a note before its first byte, so that an interrupted one can be named. Files of
`partial/` are named after the content they will have, so equal files meet under one name.

Does not: remove anything while a pull is running.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openhearth.durable import disk_errors, is_temporary, locked, write_durably
from openhearth.errors import HearthError
from openhearth.hub.manifest import DIGEST, MAX_MANIFEST_BYTES, file_stem
from openhearth.hub.records import RemoteFile
from openhearth.hub.store import Store

_NOTE_SCHEMA = 1


@dataclass(frozen=True)
class Leftover:
    """One unfinished pull. total_bytes None when a source did not say; done_bytes are on disk."""

    name: str
    done_bytes: int
    total_bytes: int | None


def partial_key(remote: RemoteFile) -> str:
    """Return the name under which a file's parts are kept: by content where the source promises it."""
    if remote.sha256:
        return remote.sha256
    if remote.git_sha1:
        return f"git-{hashlib.sha256(remote.git_sha1.encode()).hexdigest()}"
    address = f"{remote.url} {remote.member or ''}"
    return f"url-{hashlib.sha256(address.encode()).hexdigest()}"


@contextlib.contextmanager
def pulling(store: Store, name: str, files: Mapping[str, RemoteFile]) -> Iterator[None]:
    """Hold a pull's place: its note exists meanwhile, and after a failure, but not after success."""
    note = store.partial / f"{file_stem(name)}.note.json"
    parts = {path: {"key": partial_key(remote), "size": remote.size} for path, remote in files.items()}
    record = {"schema": _NOTE_SCHEMA, "name": name, "files": parts}
    with disk_errors(store.home), locked(store.home / "pulling.lock", is_shared=True):
        write_durably(note, json.dumps(record).encode())
        try:
            yield
        except BaseException:
            _drop_empty_parts(store, record)
            if not _leftover(store, record).done_bytes:
                note.unlink(missing_ok=True)
            raise
        note.unlink(missing_ok=True)


def leftovers(store: Store) -> list[Leftover]:
    """Return the unfinished pulls, those that are running now included."""
    found = []
    for note in _entries(store.partial):
        if note.name.endswith(".note.json"):
            with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
                found.append(_leftover(store, _read_note(note)))
    return sorted(found, key=lambda leftover: leftover.name)


def unused_bytes(store: Store) -> int:
    """Return the bytes that `remove_leftovers` would free."""
    return sum(_disk_bytes(path) for path in _unused(store))


def remove_leftovers(store: Store) -> int:
    """Remove parts of unfinished pulls, blobs that no model uses and damaged blobs; return bytes freed.

    Raises: HearthError when a pull is running.
    """
    with disk_errors(store.home), locked(store.home / "pulling.lock", does_wait=False) as is_quiet:
        if not is_quiet:
            raise HearthError("a pull is running, its parts are in use", hint="try again when it has ended")
        with locked(store.home / "store.lock"):
            freed = unused_bytes(store)
            for path in _unused(store):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
            store.drop_unused_snapshots()
    return freed


def _leftover(store: Store, record: Mapping[str, Any]) -> Leftover:
    done, sizes = 0, [file["size"] for file in record["files"].values()]
    for file in record["files"].values():
        whole = store.blob_size(file["key"]) if DIGEST.fullmatch(file["key"]) else None
        done += whole if whole is not None else part_bytes(store.partial / file["key"], file["size"])
    return Leftover(str(record["name"]), done, None if None in sizes else sum(sizes))


def _drop_empty_parts(store: Store, record: Mapping[str, Any]) -> None:
    """Remove parts whose space is reserved but of which nothing arrived: there is nothing to go on from."""
    from openhearth.hub.transfer import discard

    for file in record["files"].values():
        partial = store.partial / file["key"]
        if partial.exists() and not part_bytes(partial, file["size"]):
            with suppress(OSError):
                discard(partial)


def part_bytes(partial: Path, size: int | None) -> int:
    """Return how much of a file has arrived: by its journal while there is one."""
    from openhearth.hub.transfer import num_bytes_present

    recorded, total = num_bytes_present(partial)
    present = recorded if total is not None else _disk_bytes(partial)
    return present if size is None else min(present, size)


def _read_note(path: Path) -> Mapping[str, Any]:
    if path.stat().st_size > MAX_MANIFEST_BYTES:
        raise ValueError("too large")
    record = json.loads(path.read_bytes())
    if record["schema"] != _NOTE_SCHEMA:
        raise ValueError("another version's")
    return record


def _unused(store: Store) -> list[Path]:
    """Return parts, blobs that no model uses, damaged blobs, and files whose writer was killed."""
    used = store.referenced()
    blobs = [blob for folder in _entries(store.blobs) for blob in _entries(folder) if blob.name not in used]
    torn = [path for folder in (store.models, store.home) for path in _entries(folder) if is_temporary(path)]
    return [*_entries(store.partial), *blobs, *torn]


def _disk_bytes(path: Path) -> int:
    """Bytes that a file or folder really takes: parts are sparse until they are filled."""
    with suppress(FileNotFoundError):
        found = path.lstat()
        if path.is_dir() and not path.is_symlink():
            return sum(_disk_bytes(child) for child in _entries(path))
        return min(found.st_blocks * 512, found.st_size)
    return 0


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
