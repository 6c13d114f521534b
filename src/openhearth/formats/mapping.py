"""Files as read-only memory: nothing is copied until it is used.

Does not: survive a file that another process cuts short while it is mapped (the operating system
ends the reader with SIGBUS); the store's files are never changed in place.
"""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from openhearth.errors import BadFile, ModelNotFound
from openhearth.formats.quoting import quoted
from openhearth.formats.records import TensorEntry

FETCH_AGAIN = "fetch the file again; `hearth pull REF` checks what arrives by its hash"


def damaged(what: str, why: str = "") -> BadFile:
    """Return the error for a file that is to be fetched again."""
    return BadFile(what, why=why, hint=FETCH_AGAIN)


@contextmanager
def mapped_file(path: Path) -> Iterator[mmap.mmap]:
    """Map a whole regular file read-only for the length of a `with` block.

    Raises: ModelNotFound when there is no such file, BadFile when it is empty, no regular file, or
    cannot be opened.
    """
    with _opened(path) as (descriptor, size):
        if size == 0:
            raise damaged(f"{quoted(path)} is empty: 0 bytes")
        with mmap.mmap(descriptor, size, access=mmap.ACCESS_READ) as mapping:
            yield mapping


def map_tensor(entry: TensorEntry) -> memoryview:
    """Return the bytes of a tensor as a read-only view of the file; the view keeps the mapping alive.

    Raises: ModelNotFound or BadFile when the file is gone or became shorter since its header was read.
    """
    if entry.num_bytes == 0:
        return memoryview(b"")
    with _opened(entry.path) as (descriptor, size):
        end = entry.offset + entry.num_bytes
        if end > size:
            raise damaged(f"{quoted(entry.path)} has {size} bytes, tensor {quoted(entry.name)} ends at {end}",
                          "the file became shorter after its header was read")
        lead = entry.offset % mmap.ALLOCATIONGRANULARITY
        mapping = mmap.mmap(descriptor, lead + entry.num_bytes, access=mmap.ACCESS_READ,
                            offset=entry.offset - lead)
    return memoryview(mapping)[lead:]


def read_head(path: Path, num_bytes: int) -> bytes:
    """Return up to the first num_bytes of a regular file. Raises: as `mapped_file`; empty is fine."""
    with _opened(path) as (descriptor, size):
        return os.pread(descriptor, min(num_bytes, size), 0)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[int, int]]:
    try:
        # Without O_NONBLOCK a named pipe would wait for a writer before it could be refused.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise ModelNotFound(f"no file {quoted(path)}", hint="hearth list") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise BadFile(f"cannot open {quoted(path)}: {reason}",
                      hint="check the path and its permissions") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise BadFile(f"{quoted(path)} is not a regular file", hint="give a file or a model folder")
        yield descriptor, status.st_size
    except OSError as error:
        raise damaged(f"cannot read {quoted(path)}: {error.strerror or error}") from None
    finally:
        os.close(descriptor)
