"""The folder of one evaluation: written as it goes, complete when its receipt is there.

    settings.json           what was asked, before anything is
    samples.partial.jsonl   whole problems, as they are graded; gone when the run is complete
    samples.jsonl           all samples in the order of task, problem and sample
    receipt.json            hashes of both and the results, last

Does not: lock; two runs need two folders.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from openhearth.errors import BadFile, UsageError
from openhearth.evals.records import Sample

_SETTINGS, _PARTIAL, _SAMPLES, _RECEIPT = ("settings.json", "samples.partial.jsonl", "samples.jsonl",
                                           "receipt.json")


def hash_settings(settings: Mapping[str, Any]) -> str:
    """Return the sha256 of settings: equal hashes mean runs that must give equal samples."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


class EvalFolder:
    """One evaluation on disk.

    settings: everything that decides the samples, as JSON values; num_samples is one of them. earlier:
    the receipt of a complete run that was there, None without one. Example:
    ``EvalFolder.begin(path, settings, is_resumed=False)``.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], samples: list[Sample],
                 earlier: dict[str, Any] | None) -> None:
        self.path = path
        self.settings = settings
        self.samples = samples
        self.earlier = earlier
        _write(path / _PARTIAL, _lines(samples))
        self._file = (path / _PARTIAL).open("a", encoding="ascii")

    @classmethod
    def begin(cls, path: Path, settings: Mapping[str, Any], *, is_resumed: bool) -> EvalFolder:
        """Make the folder, or take it up again with the samples that a cut run left there.

        Raises: UsageError when the folder is of other settings, when there is nothing to resume, or when
        samples of a cut run would be lost; BadFile when what is there is damaged.
        """
        path.mkdir(parents=True, exist_ok=True)
        found = _read_json(path / _SETTINGS)
        if found is not None and found != settings:
            names = [name for name in {**found, **settings} if found.get(name) != settings.get(name)]
            raise UsageError(f"`{path}` holds a run of other settings", why=f"different: {', '.join(names)}",
                             hint="another --out")
        samples = _read_partial(path / _PARTIAL, settings["num_samples"])
        if samples and not is_resumed:
            raise UsageError(f"`{path}` holds {len(samples)} samples of a run that was cut",
                             why="a new run would discard them", hint="--resume, or another --out")
        if is_resumed and found is None:
            raise UsageError(f"`{path}` holds nothing to resume", hint="leave --resume out")
        earlier = _read_json(path / _RECEIPT)
        if is_resumed and earlier is not None and not samples:
            samples = _read_lines(path / _SAMPLES)
        _write(path / _SETTINGS, json.dumps(settings, indent=2) + "\n")
        return cls(path, settings, samples, earlier)

    def add(self, samples: Sequence[Sample]) -> None:
        """Keep the samples of one problem, at once."""
        self.samples += samples
        self._file.write(_lines(samples))
        self._file.flush()

    def finish(self, results: Mapping[str, Any], order: Sequence[str]) -> dict[str, Any]:
        """Write samples.jsonl and the receipt, and return it. order: names of the tasks."""
        place = {name: number for number, name in enumerate(order)}
        self.samples.sort(key=lambda sample: (place[sample.task], sample.problem, sample.sample))
        lines = _lines(self.samples)
        receipt = {"settings_sha256": hash_settings(self.settings),
                   "samples_sha256": hashlib.sha256(lines.encode()).hexdigest(),
                   "num_samples": len(self.samples), **results}
        _write(self.path / _SAMPLES, lines)
        _write(self.path / _RECEIPT, json.dumps(receipt, indent=2) + "\n")
        self.close()
        (self.path / _PARTIAL).unlink()
        return receipt

    def close(self) -> None:
        """Close the file of samples; they stay for `--resume`."""
        self._file.close()


def read_samples(path: Path) -> list[Sample]:
    """Return the samples of a complete evaluation, checked against its receipt.

    Raises: UsageError when the folder holds none, BadFile when they are not those of the receipt.
    """
    receipt = _read_json(path / _RECEIPT)
    if receipt is None:
        raise UsageError(f"`{path}` holds no complete evaluation", hint="hearth eval ... --out FOLDER")
    try:
        found = hashlib.sha256((path / _SAMPLES).read_bytes()).hexdigest()
    except OSError as error:
        raise BadFile(f"`{path / _SAMPLES}` cannot be read", why=f"{error.strerror}") from error
    if found != receipt.get("samples_sha256"):
        raise BadFile(f"`{path / _SAMPLES}` is not what the receipt names", why=f"sha256 is {found}",
                      hint="run the evaluation again")
    return _read_lines(path / _SAMPLES)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise BadFile(f"`{path}` is damaged", why=f"{error}", hint="another --out") from error


def _read_partial(path: Path, num_samples: int) -> list[Sample]:
    """Return the samples a cut run left, without a last problem whose lines did not all arrive."""
    if not path.exists():
        return []
    samples = []
    for line in path.read_text(encoding="ascii", errors="replace").split("\n")[:-1]:
        try:
            samples.append(Sample.from_line(line))
        except (ValueError, TypeError, KeyError):
            break
    return samples[:len(samples) // num_samples * num_samples]


def _read_lines(path: Path) -> list[Sample]:
    try:
        return [Sample.from_line(line) for line in path.read_text(encoding="ascii").splitlines()]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise BadFile(f"`{path}` is damaged", why=f"{error}", hint="run the evaluation again") from error


def _lines(samples: Sequence[Sample]) -> str:
    return "".join(sample.to_line() + "\n" for sample in samples)


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".new")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
