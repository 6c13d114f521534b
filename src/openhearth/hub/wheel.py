"""Take one file out of a wheel, with bounds. Nothing is installed, imported or executed.

A wheel is a zip file (PEP 427; APPNOTE.TXT 6.3). Checked before a byte is written: the size of the
directory, that the member is there once, is a plain file, is stored or deflated, not encrypted, of the
expected size and of a believable ratio. Checked while writing: its length and CRC.
"""

from __future__ import annotations

import difflib
import os
import stat
import struct
import zipfile
import zlib
from pathlib import Path

from openhearth.errors import BadFile, ModelNotFound
from openhearth.hub.partial import CHUNK_BYTES, Digest, Report, Target, allocate, disk_error, remove
from openhearth.hub.paths import check_path

_MAX_DIRECTORY_BYTES = 32 << 20
_MAX_RATIO = 200
_END = b"PK\x05\x06"
_BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, struct.error, NotImplementedError, RuntimeError,
           ValueError, OverflowError)


def find_member(wheel: Path, member: str, label: str) -> zipfile.ZipInfo:
    """Return a member's directory entry, checked.

    label: names the wheel in messages. Raises: ModelNotFound when it is not there; BadFile when the wheel is
    no zip file or the entry breaks a bound.
    """
    check_path(member, "the reference")
    try:
        _check_directory(wheel, label)
        with zipfile.ZipFile(wheel) as archive:
            entries = [info for info in archive.infolist() if info.filename == member]
            names = [info.filename for info in archive.infolist()]
    except _BROKEN as error:
        raise BadFile(f"{label} is not a readable wheel", why=str(error)) from None
    if not entries:
        near = difflib.get_close_matches(member, names, 3, 0.3) or names[:3]
        raise ModelNotFound(f"{label} has no file `{member}`",
                            why="it has " + ", ".join(f"`{name}`" for name in near))
    info = entries[0]
    mode = info.external_attr >> 16
    reason = ""
    if len(entries) > 1:
        reason = "the name occurs more than once"
    elif info.is_dir() or (mode and not stat.S_ISREG(mode) and stat.S_IFMT(mode)):
        reason = "it is not a plain file"
    elif info.flag_bits & 0x1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        reason = "it is encrypted or packed in an unusual way"
    elif info.file_size > _MAX_RATIO * max(info.compress_size, 1):
        reason = f"{info.compress_size} bytes claim to unpack to {info.file_size}"
    if reason:
        raise BadFile(f"{label}: `{member}` is refused", why=reason)
    return info


def unpack(wheel: Path, info: zipfile.ZipInfo, into: Path, target: Target, report: Report) -> Digest:
    """Write a member (of `find_member`) to a new file and return its digest.

    Raises: HashMismatch when its size is not the target's; BadFile when it is damaged; NotEnoughDisk. After
    an error `into` is gone.
    """
    target.check_size(info.file_size)
    digest = Digest(info.file_size)
    remove(into)  # with a journal of another source's download, which would vouch for these bytes
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(info) as source, into.open("xb") as file:
            allocate(file.fileno(), info.file_size)
            while piece := source.read(CHUNK_BYTES):
                file.write(piece)
                digest.update(piece)
                report("unpack", digest.position, info.file_size, 0, "")
            file.flush()
            os.fsync(file.fileno())
        if digest.position != info.file_size:
            raise zipfile.BadZipFile(f"{digest.position} bytes where {info.file_size} were declared")
    except _BROKEN as error:
        into.unlink(missing_ok=True)
        raise BadFile(f"`{target.label}` is damaged inside its wheel", why=str(error)) from None
    except OSError as error:
        into.unlink(missing_ok=True)
        raise disk_error(error, target.label) from None
    return digest


def _check_directory(wheel: Path, label: str) -> None:
    """Bound the directory before zipfile reads it whole. Layout: APPNOTE.TXT 4.3.16, and 4.3.14 for zip64."""
    with wheel.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 65557))
        tail = file.read()
    at = tail.rfind(_END)
    if at < 0 or at + 20 > len(tail):
        raise zipfile.BadZipFile("no end-of-directory record")
    num_bytes = struct.unpack_from("<I", tail, at + 12)[0]
    wide = tail.rfind(b"PK\x06\x06", 0, at)
    if num_bytes == 0xFFFFFFFF and wide >= 0:
        num_bytes = struct.unpack_from("<Q", tail, wide + 40)[0]
    if num_bytes > _MAX_DIRECTORY_BYTES:
        raise BadFile(f"{label} has a directory of {num_bytes} bytes",
                      why=f"at most {_MAX_DIRECTORY_BYTES} are read")
