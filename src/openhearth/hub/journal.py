"""Which bytes of a partial file are on disk, recorded beside it so that a new process can go on.

Layout of `<partial>.journal`: one JSON line (version, identity of the remote bytes, boot), then one line
`start end` per range whose bytes were handed to the kernel, and lines `sync n`: the first n ranges survive
a power cut. SIGKILL loses nothing that was recorded; after a reboot only synced ranges are believed. The
final hash decides in every case.

Does not: read or write the partial file itself, or lock anything.
"""

from __future__ import annotations

import json
import os
import re
from bisect import bisect_left
from dataclasses import asdict, dataclass
from pathlib import Path

_VERSION = 1
_MAX_JOURNAL_BYTES = 64 << 20
_LINE = re.compile(r"(\d{1,19}) (\d{1,19})")
_SYNC = re.compile(r"sync (\d{1,12})")


@dataclass(frozen=True)
class Identity:
    """What the bytes are, whatever address they come from. etag only counts when there is no hash."""

    size: int
    sha256: str | None = None
    git_sha1: str | None = None
    etag: str | None = None

    @property
    def is_certain(self) -> bool:
        """Whether two equal identities mean equal bytes."""
        return bool(self.sha256 or self.git_sha1 or self.etag)


class Ranges:
    """A set of disjoint half-open byte ranges. Example: ``Ranges([(0, 4), (4, 8)]).spans == [(0, 8)]``."""

    def __init__(self, spans: list[tuple[int, int]] | None = None) -> None:
        self.spans: list[tuple[int, int]] = []
        self.num_bytes = 0
        for start, end in spans or []:
            self.add(start, end)

    def add(self, start: int, end: int) -> None:
        """Add bytes start..end (end not included), joining what touches."""
        first = bisect_left(self.spans, start, key=lambda span: span[1])
        last = first
        while last < len(self.spans) and self.spans[last][0] <= end:
            low, high = self.spans[last]
            start, end = min(start, low), max(end, high)
            self.num_bytes -= high - low
            last += 1
        self.spans[first:last] = [(start, end)]
        self.num_bytes += end - start

    @property
    def prefix(self) -> int:
        """The number of bytes present without a gap from the start."""
        return self.spans[0][1] if self.spans and self.spans[0][0] == 0 else 0

    def missing(self, size: int) -> list[tuple[int, int]]:
        """Return the gaps up to size."""
        gaps, position = [], 0
        for start, end in [*self.spans, (size, size)]:
            if position < start:
                gaps.append((position, start))
            position = end
        return gaps


class Journal:
    """The open journal of one partial file. One process writes (it holds the lock); others may `peek`."""

    def __init__(self, path: Path, identity: Identity, ranges: Ranges) -> None:
        """Write a fresh journal with these ranges, atomically, and open it for appending."""
        self.path = path
        self.identity = identity
        self.ranges = ranges
        self._num_records = len(ranges.spans)
        header = {"version": _VERSION, "boot": _boot_id(), **asdict(identity)}
        lines = [json.dumps(header), *(f"{start} {end}" for start, end in ranges.spans)]
        fresh = path.with_name(path.name + ".new")
        fresh.write_text("\n".join([*lines, f"sync {self._num_records}"]) + "\n", encoding="ascii")
        with fresh.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(fresh, path)
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)

    def mark(self, start: int, end: int) -> None:
        """Record that bytes start..end were written. Call under one lock with the write."""
        os.write(self._fd, f"{start} {end}\n".encode())
        self._num_records += 1
        self.ranges.add(start, end)

    def sync(self, data_fd: int) -> None:
        """Bring the data, then the journal, to the disk itself."""
        num_records = self._num_records
        os.fsync(data_fd)
        os.write(self._fd, f"sync {num_records}\n".encode())
        os.fsync(self._fd)

    def close(self) -> None:
        """Close the file; the journal stays."""
        os.close(self._fd)


def read_journal(path: Path) -> tuple[Identity, Ranges] | None:
    """Return what a journal says, or None when there is none or it cannot be believed."""
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_JOURNAL_BYTES + 1)
        head, *lines = text.decode("ascii").split("\n")
        header = json.loads(head)
        if len(text) > _MAX_JOURNAL_BYTES or header.pop("version") != _VERSION:
            return None
        is_same_boot = header.pop("boot") == _boot_id()
        identity = Identity(**header)
        if not isinstance(identity.size, int) or identity.size < 0:
            return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    records, num_synced = [], 0
    for line in lines[:-1]:  # what follows the last newline is torn
        if match := _LINE.fullmatch(line):
            start, end = int(match[1]), int(match[2])
            if not start < end <= identity.size:
                return None
            records.append((start, end))
        elif match := _SYNC.fullmatch(line):
            num_synced = int(match[1])
        else:
            break
    return identity, Ranges(records if is_same_boot else records[:num_synced])


def _boot_id() -> str:
    """Return what changes when the machine starts anew; empty where the system does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""
