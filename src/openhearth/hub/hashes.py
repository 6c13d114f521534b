"""Hashes of files that are used in place: computed once, remembered by what the file looked like.

A remembered hash holds while path, size, modification time and inode are unchanged. A file that
changed in the last seconds is hashed but not remembered: a second change could leave the same time.

Does not: notice a change that keeps size, time and inode; `hearth show NAME --verify` does.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Iterable
from pathlib import Path

from openhearth.durable import locked, write_durably
from openhearth.errors import BadFile
from openhearth.hub.records import OnProgress, Progress

MAX_REMEMBERED = 4096
_SETTLED_NS = 2_000_000_000
_CHUNK = 1 << 22
_DIGEST = re.compile(r"[0-9a-f]{64}")


def hash_file(path: Path, *, on_progress: OnProgress | None = None, label: str | None = None) -> str:
    """Return a file's sha256 in hex. Raises: BadFile when it changes while it is read."""
    digest, done, told = hashlib.sha256(), 0, 0.0
    with open(path, "rb", buffering=0) as file:
        before = os.fstat(file.fileno())
        buffer = memoryview(bytearray(_CHUNK))
        while done <= before.st_size and (count := file.readinto(buffer)):
            digest.update(buffer[:count])
            done += count
            if on_progress and (time.monotonic() - told > 0.1 or done >= before.st_size):
                told = time.monotonic()
                on_progress(Progress(label or path.name, "verify", done, before.st_size))
        after = os.fstat(file.fileno())
    if done != before.st_size or _look(before) != _look(after):
        raise BadFile(f"`{path}` changed while it was read", hint="try again when nothing writes to it")
    return digest.hexdigest()


class HashMemory:
    """sha256 by file, kept in one small JSON file that many processes may use at once.

    Example: ``HashMemory(home / "hashes.json").digests([Path("m.gguf")])``. A damaged memory is
    forgotten, an unwritable one is not kept: both only cost time.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def digests(self, files: Iterable[Path], *, on_progress: OnProgress | None = None) -> dict[Path, str]:
        """Return the sha256 of each file, computing what is not remembered.

        Raises: OSError when a file cannot be read, BadFile when it changes meanwhile.
        """
        known, fresh, found = self._read(), {}, {}
        for file in files:
            real = file.resolve(strict=True)
            look = _look(real.stat())
            record = known.get(str(real))
            if record and record[:3] == look:
                found[file] = record[3]
                continue
            found[file] = hash_file(real, on_progress=on_progress, label=file.name)
            if time.time_ns() - look[1] > _SETTLED_NS:
                fresh[str(real)] = [*look, found[file]]
        if fresh:
            self._remember(fresh)
        return found

    def forget(self, files: Iterable[Path]) -> None:
        """Drop what is remembered of these files, so that they are hashed again."""
        names = {str(file.resolve()) for file in files}
        if names & set(self._read()):
            self._remember({}, forgotten=names)

    def _read(self) -> dict[str, list]:
        try:
            records = json.loads(self.path.read_bytes())["files"]
            return {name: record for name, record in records.items() if _is_record(record)}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return {}

    def _remember(self, fresh: dict[str, list], forgotten: Iterable[str] = ()) -> None:
        try:
            with locked(self.path.with_name(self.path.name + ".lock")):
                records = self._read()
                for name in [*fresh, *forgotten]:
                    records.pop(name, None)
                records = dict([*records.items(), *fresh.items()][-MAX_REMEMBERED:])
                write_durably(self.path, json.dumps({"schema": 1, "files": records}).encode())
        except OSError:
            return


def _look(stat: os.stat_result) -> list[int]:
    return [stat.st_size, stat.st_mtime_ns, stat.st_ino]


def _is_record(record: object) -> bool:
    return (isinstance(record, list) and len(record) == 4 and all(type(value) is int for value in record[:3])
            and isinstance(record[3], str) and _DIGEST.fullmatch(record[3]) is not None)
