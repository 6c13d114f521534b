"""A file that is still arriving: what is known about its bytes, what an earlier run left of it, its hashes.

Beside `<partial>` may lie `<partial>.journal` (which bytes have arrived), `<partial>.lock` (who fetches it)
and, for a file inside a wheel, `<partial>.wheel` with its own journal. All but the file itself are gone when
`transfer.fetch` returns.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from openhearth.errors import HashMismatch, NotEnoughDisk
from openhearth.hub.http import redact
from openhearth.hub.journal import Identity, Ranges, read_journal

CHUNK_BYTES = 1 << 20
_FULL = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the quota is used up",
         errno.EFBIG: "the file would pass the limit of `ulimit -f` or of the file system"}

Report = Callable[[str, int, int | None, int, str], None]  # phase, done, total, resumed, note


@dataclass(frozen=True)
class Target:
    """What to bring: where it is, and what is known about its bytes. label names it in messages.

    Example: ``Target("model.gguf", "https://host/model.gguf", size=10, sha256="...")``.
    """

    label: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    size: int | None = None
    sha256: str | None = None
    git_sha1: str | None = None

    def check_size(self, size: int) -> None:
        """Raises: HashMismatch when size is not the promised one."""
        if self.size is not None and size != self.size:
            raise HashMismatch(f"`{self.label}` has {size} bytes, {self.size} were promised",
                               why=f"source: {redact(self.url)}")

    def check(self, digest: Digest) -> None:
        """Raises: HashMismatch when the bytes are not the promised ones."""
        self.check_size(digest.position)
        for name, expected, actual in (("sha256", self.sha256, digest.sha256),
                                       ("git blob id", self.git_sha1, digest.git_sha1)):
            if expected and expected != actual:
                raise HashMismatch(f"`{self.label}` is not the file that was promised; it was removed",
                                   why=f"expected {name} {expected}\nactual   {name} {actual}\n"
                                       f"source   {redact(self.url)}",
                                   hint="run the same command again; if it repeats, the source is wrong")


class Digest:
    """sha256 of a file's growing prefix; with its size also git's blob id.

    That id is the sha1 of `blob <size>`, a NUL and the content (git's object format).
    """

    def __init__(self, size: int | None = None) -> None:
        self.position = 0
        self._sha256 = hashlib.sha256()
        self._git = None if size is None else hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)

    def advance(self, fd: int, end: int) -> None:
        """Hash the file from where the last call stopped up to end."""
        while self.position < end:
            piece = os.pread(fd, min(CHUNK_BYTES, end - self.position), self.position)
            if not piece:
                return
            self.update(piece)

    def update(self, piece: bytes) -> None:
        """Hash the next bytes."""
        self._sha256.update(piece)
        if self._git:
            self._git.update(piece)
        self.position += len(piece)

    @property
    def sha256(self) -> str:
        """Hex digest of what was hashed."""
        return self._sha256.hexdigest()

    @property
    def git_sha1(self) -> str | None:
        """Git blob id of what was hashed, if that is the whole file; None when the size was not known."""
        return self._git.hexdigest() if self._git else None


def beside(partial: Path, kind: str) -> Path:
    """Return the path of a companion file: `journal`, `lock` or `wheel`."""
    return partial.with_name(f"{partial.name}.{kind}")


def remove(partial: Path) -> None:
    """Remove a partial file and its journal."""
    partial.unlink(missing_ok=True)
    beside(partial, "journal").unlink(missing_ok=True)


def resumable(target: Target, partial: Path) -> tuple[Identity, Ranges] | None:
    """Return what an earlier run left, when it belongs to these bytes and the file is as it was left."""
    found = read_journal(beside(partial, "journal"))
    if found is None:
        return None
    identity = found[0]
    try:
        is_whole = partial.is_file() and not partial.is_symlink() and partial.stat().st_size == identity.size
    except OSError:
        return None
    is_same = (target.size in (None, identity.size) and target.sha256 == identity.sha256
               and target.git_sha1 == identity.git_sha1)
    return found if is_whole and is_same and identity.is_certain else None


def allocate(fd: int, size: int) -> None:
    """Reserve the blocks of a file of this size, to meet a disk that is too small before the first byte.

    Raises: OSError with an errno that `disk_error` knows.
    """
    if size and hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(fd, 0, size)
        except OSError as error:
            if error.errno in _FULL:
                raise
    os.ftruncate(fd, size)


def disk_error(error: OSError, label: str, *, is_kept: bool = True) -> OSError | NotEnoughDisk:
    """Return what to raise for a failed write: NotEnoughDisk where space or a limit is the reason."""
    if error.errno not in _FULL:
        return error
    return NotEnoughDisk(f"cannot write `{label}`: {_FULL[error.errno]}",
                         why="what has arrived is kept" if is_kept else "this file starts over next time",
                         hint="free some space and run the same command again")
