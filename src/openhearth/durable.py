"""Locks between processes and durable writes: what the safety of the store and of runs rests on.

`flock` is released by the kernel when its holder dies, however it dies.

Does not: order threads of one process beyond what flock does (each call opens the file anew).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from openhearth.errors import HearthError, NotEnoughDisk, UsageError


@contextlib.contextmanager
def locked(path: Path, *, is_shared: bool = False, does_wait: bool = True) -> Iterator[bool]:
    """Hold an advisory lock on path (created when absent) and yield True.

    Without does_wait, yield False at once when another process holds it in the way. The holder of
    an exclusive lock may remove the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    mode = (fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX) | (0 if does_wait else fcntl.LOCK_NB)
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            try:
                fcntl.flock(descriptor, mode)
            except BlockingIOError:
                yield False
                return
            if _is_still(path, descriptor):
                yield True
                return
        finally:
            os.close(descriptor)


def _is_still(path: Path, descriptor: int) -> bool:
    """Whether the locked file is the one at path: its last holder may have removed it."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def sync_folder(path: Path) -> None:
    """Make renames and removals in a folder survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durably(path: Path, content: bytes) -> None:
    """Replace a file in one step; after a crash it has the old or the new content, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name[:100]}.{os.getpid()}.{os.urandom(4).hex()}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def is_temporary(path: Path) -> bool:
    """Whether a file is what a killed `write_durably` left."""
    return path.name.startswith(".") and path.name.endswith(".tmp")


@contextlib.contextmanager
def disk_errors(home: Path) -> Iterator[None]:
    """Turn what the disk refuses into errors of ours: full, read-only, forbidden, not a folder."""
    try:
        yield
    except OSError as error:
        if isinstance(error, HearthError):
            raise
        if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
            raise NotEnoughDisk(f"the disk of `{home}` is full",
                                why=f"{error.strerror}; what arrived is kept",
                                hint="hearth rm NAME, or HEARTH_HOME=/larger/disk") from None
        if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR}:
            raise UsageError(f"the store `{home}` cannot be written",
                             why=f"{error.filename}: {error.strerror}",
                             hint="HEARTH_HOME=/a/folder/of/yours") from None
        raise
