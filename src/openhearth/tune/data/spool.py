"""Rendered samples on disk, read back one at a time: data of any size takes a few bytes of memory per row.

They lie in a temporary file without a name (in TMPDIR, else /tmp), which is gone with the process, at five
bytes a token; a random order costs one read per sample.

Does not: outlive the process, or take anything but samples and preferences.
"""

from __future__ import annotations

import os
import tempfile
from array import array
from collections.abc import Sequence

from openhearth.errors import NotEnoughDisk
from openhearth.tune.data.records import Preference, Sample

_SAMPLE, _CHOSEN, _REJECTED = 0, 1, 2


class Spool(Sequence):
    """Samples or preferences in the order they were added. lengths, num_trained: of each, of all.

    Example: ``spool = Spool(); spool.add(Sample((1, 2), (False, True), "a", 1)); spool[0].line == 1``.
    """

    def __init__(self) -> None:
        self.lengths, self.num_trained = array("q"), 0
        self._file = tempfile.TemporaryFile(prefix="hearth-samples-")  # noqa: SIM115 (lives with the spool)
        self._ends, self._lines, self._files = array("q", [0]), array("q"), array("i")
        self._names: list[str] = []

    def add(self, unit: Sample | Preference) -> None:
        """Add one. Raises: NotEnoughDisk."""
        parts = [b""]
        for kind, sample in _members(unit):
            parts += [array("i", [kind, len(sample.token_ids)]).tobytes(),
                      array("i", sample.token_ids).tobytes(), bytes(sample.is_trained)]
        content = b"".join(parts)
        try:
            self._file.write(content)
            self._file.flush()
        except OSError as error:
            raise NotEnoughDisk(f"samples of {self._ends[-1]} bytes and more do not fit into "
                                f"`{tempfile.gettempdir()}`", why=error.strerror or "",
                                hint="TMPDIR=/larger/disk") from None
        if unit.file not in self._names[-1:]:
            self._names.append(unit.file)
        self._ends.append(self._ends[-1] + len(content))
        self._lines.append(unit.line)
        self._files.append(len(self._names) - 1)
        self.lengths.append(len(unit.token_ids))
        self.num_trained += unit.num_trained

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, place):
        if isinstance(place, slice):
            return [self[one] for one in range(*place.indices(len(self)))]
        place = range(len(self))[place]
        start, end = self._ends[place], self._ends[place + 1]
        content = os.pread(self._file.fileno(), end - start, start)
        found: dict[int, Sample] = {}
        at = 0
        while at < len(content):
            kind, size = array("i", content[at:at + 8])
            tokens, masks = at + 8, at + 8 + 4 * size
            at = masks + size
            found[kind] = Sample(
                tuple(array("i", content[tokens:masks])), tuple(map(bool, content[masks:at])),
                self._names[self._files[place]], self._lines[place])
        if _SAMPLE in found:
            return found[_SAMPLE]
        return Preference(found.get(_CHOSEN), found.get(_REJECTED))


def _members(unit: Sample | Preference) -> list[tuple[int, Sample]]:
    if isinstance(unit, Sample):
        return [(_SAMPLE, unit)]
    return [(kind, sample) for kind, sample in ((_CHOSEN, unit.chosen), (_REJECTED, unit.rejected))
            if sample is not None]
