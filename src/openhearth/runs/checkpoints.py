"""Checkpoints that a kill or a full disk cannot spoil.

A checkpoint is a folder, written under a temporary name: its files, then `manifest.json` with the sha256 of
each, everything flushed to the disk, then one rename. The one before it is removed after that rename, so at
every moment the newest complete checkpoint is on the disk.

Does not: know what is in the files.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from openhearth.durable import disk_errors, sync_folder, write_durably
from openhearth.runs.receipt import hash_files

_NAME = re.compile(r"step-(\d{8})")
_MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint. step: steps done when it was taken.

    Example: ``Checkpoint(40, Path("checkpoints/step-00000040"), {"state.json": "ab12..."})``.
    """

    step: int
    path: Path
    files: Mapping[str, str]


class Checkpoints:
    """The checkpoints of one run; one process at a time (the run's lock sees to it)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def newest(self) -> Checkpoint | None:
        """Return the newest checkpoint whose files have the hashes of its manifest, None without one."""
        for step, path in sorted(self._found(), reverse=True):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                files = json.loads((path / _MANIFEST).read_bytes())["files"]
                found = hash_files(path)
                found.pop(_MANIFEST)
                if found == files:
                    return Checkpoint(step, path, files)
        return None

    @contextlib.contextmanager
    def writing(self, step: int) -> Iterator[Path]:
        """Give an empty folder to write into; when the block ends without an error it is the checkpoint.

        Raises: NotEnoughDisk, and then, as after a kill, the checkpoint before this one still stands.
        """
        fresh = self.folder / f".writing.{os.getpid()}"
        with disk_errors(self.folder):
            shutil.rmtree(fresh, ignore_errors=True)
            fresh.mkdir(parents=True)
            try:
                yield fresh
                manifest = {"step": step, "files": hash_files(fresh)}
                for path in fresh.rglob("*"):
                    _sync(path)
                write_durably(fresh / _MANIFEST, json.dumps(manifest, indent=1).encode())
                place_folder(fresh, self.folder / f"step-{step:08d}")
            except BaseException:
                shutil.rmtree(fresh, ignore_errors=True)
                raise
        self._remove_before(step)

    def remove_unfinished(self) -> None:
        """Remove what killed writers left; the caller holds the run's lock."""
        with contextlib.suppress(FileNotFoundError):
            for path in self.folder.iterdir():
                if path.name.startswith("."):
                    shutil.rmtree(path, ignore_errors=True)

    def _found(self) -> Iterator[tuple[int, Path]]:
        with contextlib.suppress(FileNotFoundError):
            for path in self.folder.iterdir():
                if matched := _NAME.fullmatch(path.name):
                    yield int(matched[1]), path

    def _remove_before(self, step: int) -> None:
        for found, path in self._found():
            if found < step:
                shutil.rmtree(path, ignore_errors=True)


def place_folder(fresh: Path, target: Path) -> None:
    """Move a complete folder to its name, in place of an older one, and make that survive a power cut."""
    if target.exists():
        old = target.with_name(f".old.{target.name}.{os.getpid()}")
        shutil.rmtree(old, ignore_errors=True)
        os.rename(target, old)
        os.rename(fresh, target)
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.rename(fresh, target)
    sync_folder(target.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
