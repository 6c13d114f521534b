"""All samples of a run's data files, with what was left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from openhearth.errors import UsageError
from openhearth.runs import hash_file
from openhearth.tune.data.reading import Row, read_rows
from openhearth.tune.data.records import Preference, Refusal, Sample
from openhearth.tune.data.spool import Spool

_SHOWN = 5


class RowRenderer(Protocol):
    """Makes of a row what is trained on (`rendering.py`, `preferences.py`). hint: a row that can be read."""

    hint: str

    def render(self, row: Row) -> Sample | Preference | Refusal:
        """Return what is trained on, or why there is nothing."""
        ...


@dataclass(frozen=True)
class SampleSet:
    """Samples in the order of the files. files: path -> sha256."""

    samples: Spool
    refusals: tuple[Refusal, ...]
    files: dict[str, str]

    @property
    def num_tokens(self) -> int:
        """Tokens of all samples."""
        return sum(self.samples.lengths)

    @property
    def num_trained(self) -> int:
        """Tokens of all samples that the loss is on."""
        return self.samples.num_trained

    def describe_refusals(self) -> str:
        """Return what was left out, the first ones by name; "" when nothing was."""
        if not self.refusals:
            return ""
        lines = [f"{item.file}:{item.line}: {item.reason}" for item in self.refusals[:_SHOWN]]
        if len(self.refusals) > _SHOWN:
            files = Counter(item.file for item in self.refusals[_SHOWN:])
            lines += [f"and {count} more of {file}" for file, count in files.items()]
        num_rows = len(self.refusals) + len(self.samples)
        return "\n".join([f"{len(self.refusals)} of {num_rows} rows are left out", *lines])


def load_samples(paths: Sequence[Path], renderer: RowRenderer) -> SampleSet:
    """Read and render every row. Raises: UsageError when none is left, and as `read_rows`."""
    samples = Spool()
    refusals: list[Refusal] = []
    for path in paths:
        for row in read_rows(path):
            made = renderer.render(row) if isinstance(row, Row) else row
            refusals.append(made) if isinstance(made, Refusal) else samples.add(made)
    found = SampleSet(samples, tuple(refusals), {str(path): hash_file(path) for path in paths})
    if not samples:
        raise UsageError(f"no row of {', '.join(map(str, paths))} can be trained on",
                         why=found.describe_refusals() or "the data is empty",
                         hint=f"one object per line: {renderer.hint}")
    return found
