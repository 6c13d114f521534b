"""The store: blobs by hash, manifests by name, folders of links in between.

    blobs/sha256/<2>/<64 hex>   read-only files, each named after its content
    models/<name>.json          manifests, written last
    snapshots/<key>/<path>      symbolic links to blobs, the folder that readers open
    partial/                    downloads under way and notes about them (`leftovers.py`)

Many processes may use it at once: changes hold `store.lock`, readers hold nothing. A crash at any
moment leaves complete models, or none, and unfinished parts that the next pull takes up.

Does not: fetch anything, or hash blobs again unless asked (`verify`).
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from openhearth.durable import disk_errors, locked, sync_folder, write_durably
from openhearth.errors import BadFile, HearthError, ModelNotFound, UsageError
from openhearth.hub.hashes import hash_file
from openhearth.hub.manifest import (
    DIGEST,
    MAX_MANIFEST_BYTES,
    Manifest,
    damaged,
    digests_in,
    file_stem,
    name_from_stem,
    parse_manifest,
)
from openhearth.hub.records import OnProgress, StoredModel


@dataclass(frozen=True)
class Removal:
    """What `Store.remove` did or would do: the models, and the bytes that only they used."""

    names: tuple[str, ...]
    num_bytes: int


class Store:
    """A store in one folder. Example: ``Store(config.home).find("smollm2")``."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.models = home / "models"
        self.partial = home / "partial"
        self.snapshots = home / "snapshots"
        self.blobs = home / "blobs" / "sha256"

    def blob_path(self, digest: str) -> Path:
        """Return where a blob lies or would lie. Raises: UsageError unless digest is 64 hex digits."""
        if not DIGEST.fullmatch(digest):
            raise UsageError(f"`{digest[:100]}` is not a sha256",
                             why="expected 64 lower case hexadecimal digits")
        return self.blobs / digest[:2] / digest

    def blob_size(self, digest: str) -> int | None:
        """Return the size of a blob, None when the store does not have it."""
        try:
            found = os.stat(self.blob_path(digest))
        except (FileNotFoundError, NotADirectoryError):
            return None
        return found.st_size if stat.S_ISREG(found.st_mode) else None

    def names(self) -> list[str]:
        """Return the names of all stored models, damaged ones included."""
        try:
            return sorted(name_from_stem(path.stem) if "~" not in path.stem else self._recorded_name(path)
                          for path in self.models.iterdir()
                          if path.suffix == ".json" and not path.name.startswith("."))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def read(self, name: str) -> Manifest | None:
        """Return a model's manifest, None when there is no such model.

        Raises: BadFile when it is malformed, Unsupported when another version wrote it.
        """
        raw = self._raw(name)
        return None if raw is None else parse_manifest(name, raw)

    def find(self, name: str) -> StoredModel | None:
        """Return a model if it is complete, None if there is none of this name.

        Raises: BadFile when its manifest is malformed or a blob is missing or has another size;
        Unsupported when another version wrote it.
        """
        manifest = self.read(name)
        if manifest is None:
            return None
        if any(self._linked_size(manifest, path) != file.size for path, file in manifest.files.items()):
            for path, file in manifest.files.items():
                size = self.blob_size(file.sha256)
                if size != file.size:
                    if self._raw(name) is None:
                        return None
                    raise damaged(name, f"`{path}` has {size} of {file.size} bytes" if size is not None
                                  else f"`{path}` is missing from the store")
            with disk_errors(self.home), locked(self.home / "store.lock"):
                self._link(manifest)
        return self._stored(manifest)

    def add_blob(self, partial: Path, digest: str) -> None:
        """Move a verified file into the store; it becomes read-only. An equal blob is replaced.

        partial must lie in this store's folder and is gone afterwards.
        """
        blob = self.blob_path(digest)
        with disk_errors(self.home):
            blob.parent.mkdir(parents=True, exist_ok=True)
            with open(partial, "rb") as file:
                os.fsync(file.fileno())
                os.fchmod(file.fileno(), 0o444)
            os.replace(partial, blob)
            sync_folder(blob.parent)

    def commit(self, manifest: Manifest, inspect: Callable[[Path], tuple[str, ...]]) -> StoredModel:
        """Make a model visible, its blobs being there.

        inspect gets what readers will open and returns the weight files' paths; when it raises,
        nothing becomes visible and the blobs that only this model would use are removed.
        Raises: FileNotFoundError when a blob is missing (another process removed it meanwhile).
        """
        with disk_errors(self.home), locked(self.home / "store.lock"):
            self._link(manifest)
            try:
                manifest = replace(manifest, weights=inspect(self._entry(manifest)))
            except HearthError:
                self.drop_unused_snapshots()
                for digest in set(manifest.digests.values()) - self.referenced():
                    self.blob_path(digest).unlink(missing_ok=True)
                raise
            write_durably(self._manifest_path(manifest.name), manifest.to_json())
        return self._stored(manifest)

    def remove(self, names: Iterable[str], *, is_dry_run: bool = False) -> Removal:
        """Remove models and the blobs that no other model uses.

        Open files stay readable until they are closed. Raises: ModelNotFound, before anything is
        removed, when the store lacks one of them.
        """
        names = tuple(dict.fromkeys(names))
        if not names:
            return Removal((), 0)
        if missing := [name for name in names if not self._manifest_path(name).exists()]:
            raise ModelNotFound(f"`{missing[0]}` is not in the store", hint="hearth list")
        if is_dry_run:
            return Removal(names, sum(self._size(digest) for digest in self._used_only_by(names)))
        with disk_errors(self.home), locked(self.home / "store.lock"):
            unused = self._used_only_by(names)
            freed = sum(self._size(digest) for digest in unused)
            for name in names:
                self._manifest_path(name).unlink(missing_ok=True)
            sync_folder(self.models)
            self.drop_unused_snapshots()
            for digest in unused:
                self.blob_path(digest).unlink(missing_ok=True)
        return Removal(names, freed)

    def verify(self, name: str, *, on_progress: OnProgress | None = None) -> dict[str, bool]:
        """Hash a model's blobs again; return path -> whether the bytes are the right ones.

        A wrong blob is set aside under another name, so that nothing reads it and a pull replaces it.
        Raises: ModelNotFound, BadFile.
        """
        manifest = self.read(name)
        if manifest is None:
            raise ModelNotFound(f"`{name}` is not in the store", hint="hearth list")
        verdicts = {}
        for path, file in manifest.files.items():
            blob = self.blob_path(file.sha256)
            verdicts[path] = (blob.is_file() and
                              hash_file(blob, on_progress=on_progress, label=path) == file.sha256)
            if not verdicts[path]:
                with suppress(OSError):
                    os.replace(blob, blob.with_name(blob.name + ".damaged"))
        return verdicts

    def referenced(self, *, but_not: Iterable[str] = ()) -> set[str]:
        """Return the digests that manifests name, unreadable manifests included."""
        left_out = {file_stem(name) for name in but_not}
        digests = set()
        with suppress(FileNotFoundError):
            for path in self.models.glob("*.json"):
                if path.stem not in left_out:
                    with suppress(FileNotFoundError):
                        digests |= digests_in(_read_bounded(path))
        return digests

    def drop_unused_snapshots(self) -> None:
        """Remove folders of links that no readable manifest describes; the caller holds the lock."""
        used = set()
        for name in self.names():
            with suppress(HearthError):
                if manifest := self.read(name):
                    used.add(manifest.snapshot_key)
        with suppress(FileNotFoundError):
            for folder in self.snapshots.iterdir():
                if folder.name not in used:
                    shutil.rmtree(folder, ignore_errors=True)

    def _used_only_by(self, names: tuple[str, ...]) -> set[str]:
        mine = set()
        for name in names:
            mine |= digests_in(self._raw(name) or b"")
        return mine - self.referenced(but_not=names)

    def _size(self, digest: str) -> int:
        return self.blob_size(digest) or 0

    def _link(self, manifest: Manifest) -> None:
        """Create the folder of links in one step, or put a broken one right."""
        for path, file in manifest.files.items():
            if self.blob_size(file.sha256) != file.size:
                raise FileNotFoundError(f"blob of `{path}`")
        folder = self.snapshots / manifest.snapshot_key
        if all(self._linked_size(manifest, path) == file.size for path, file in manifest.files.items()):
            return
        fresh = self.snapshots / f".{manifest.snapshot_key}.{os.getpid()}"
        shutil.rmtree(fresh, ignore_errors=True)
        for path, file in manifest.files.items():
            link = fresh / path
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(os.path.relpath(self.blob_path(file.sha256), (folder / path).parent))
        if os.path.lexists(folder):
            shutil.rmtree(folder)
        os.rename(fresh, folder)
        sync_folder(self.snapshots)

    def _linked_size(self, manifest: Manifest, path: str) -> int | None:
        """Size of the file behind a link, None when the link does not lead to the right blob."""
        link = self.snapshots / manifest.snapshot_key / path
        try:
            if os.path.basename(os.readlink(link)) != manifest.files[path].sha256:
                return None
            return os.stat(link).st_size
        except OSError:
            return None

    def _entry(self, manifest: Manifest) -> Path:
        folder = self.snapshots / manifest.snapshot_key
        return folder / next(iter(manifest.files)) if len(manifest.files) == 1 else folder

    def _stored(self, manifest: Manifest) -> StoredModel:
        return StoredModel(name=manifest.name, path=self._entry(manifest), source=manifest.source,
                           files=manifest.digests, weights_sha256=manifest.weights_sha256,
                           num_bytes=manifest.num_bytes, licence=manifest.licence, revision=manifest.revision)

    def _manifest_path(self, name: str) -> Path:
        return self.models / f"{file_stem(name)}.json"

    def _raw(self, name: str) -> bytes | None:
        try:
            return _read_bounded(self._manifest_path(name))
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _recorded_name(self, path: Path) -> str:
        """Name of a manifest whose file name is shortened; the file name itself if it is unreadable."""
        import json

        try:
            name = json.loads(_read_bounded(path))["name"]
        except (OSError, ValueError, KeyError, TypeError, HearthError):
            return name_from_stem(path.stem)
        return name if isinstance(name, str) and file_stem(name) == path.stem else name_from_stem(path.stem)


def _read_bounded(path: Path) -> bytes:
    if path.stat().st_size > MAX_MANIFEST_BYTES:
        raise BadFile(f"the manifest `{path}` is larger than {MAX_MANIFEST_BYTES} bytes",
                      hint=f"remove {path}")
    try:
        return path.read_bytes()
    except IsADirectoryError:
        raise BadFile(f"the manifest `{path}` is a folder", hint=f"remove {path}") from None
