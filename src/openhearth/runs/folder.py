"""One run's directory.

    runs/<name>/config.json      what was asked for and what was derived; first
                metrics.jsonl    one record per step
                refused.jsonl    rows of the data that were left out, with file, line and reason (sft)
                tensorboard/     the same numbers as TensorBoard reads them (`events.py`)
                rollouts/        some completions of each step with their verdicts (grpo; `rollouts.py`)
                rollout.json     all of the last step's, for a resumed run (grpo)
                checkpoints/     where the run can go on (`checkpoints.py`)
                output/          what came out
                index.html       the run as one page
                receipt.json     inputs, code, environment and outputs by hash; last
                stages/<stage>/  the runs that a chain of stages is made of, each named `<name>:<stage>`

A run is finished when its receipt is there. A process that works on a run holds its lock.

Does not: know what kind of job the run is.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from openhearth.durable import disk_errors, locked, write_durably
from openhearth.errors import BadFile, ModelNotFound, UsageError
from openhearth.runs.checkpoints import Checkpoints, place_folder

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")


class RunFolder:
    """The directory of the run `name` below home, or of a stage of a chain, `chain:stage`.

    Example: ``RunFolder(config.home, "polite").config()``.
    """

    def __init__(self, home: Path, name: str) -> None:
        """Raises: UsageError for a name that is no file name."""
        parts = name.split(":")
        if len(parts) > 2 or not all(_NAME.fullmatch(part) for part in parts):
            raise UsageError(f"`{name[:100]}` is not a name for a run",
                             why="expected letters, digits, `.`, `_` and `-`", hint="--out my-run")
        self.name = name
        self.home, self.path = home, home / "runs" / "/stages/".join(parts)
        self.checkpoints = Checkpoints(self.path / "checkpoints")
        self.output = self.path / "output"

    @property
    def exists(self) -> bool:
        """Whether the run was begun."""
        return (self.path / "config.json").exists()

    @property
    def is_finished(self) -> bool:
        """Whether its receipt is there, which is written last."""
        return (self.path / "receipt.json").exists()

    def stage(self, name: str) -> RunFolder:
        """Return the run of a stage. Raises: UsageError for a name that is no file name."""
        return RunFolder(self.home, f"{self.name}:{name}")

    def stages(self) -> list[RunFolder]:
        """Return the runs of a chain's stages in order, begun or not; none for a single run."""
        return [self.stage(stage["name"]) for stage in self.config().get("stages", ())]

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Hold the run. Raises: UsageError while another process does."""
        with disk_errors(self.path), locked(self.path / ".lock", does_wait=False) as is_held:
            if not is_held:
                raise UsageError(f"another process works on the run `{self.name}`", hint="hearth runs list")
            self.checkpoints.remove_unfinished()
            yield

    def config(self) -> dict[str, Any]:
        """Return what `write_config` wrote. Raises: ModelNotFound, BadFile."""
        return self.read("config.json")

    def receipt(self) -> dict[str, Any] | None:
        """Return the receipt of a finished run, None before. Raises: BadFile."""
        return self.read("receipt.json") if self.is_finished else None

    def write_config(self, record: dict[str, Any]) -> None:
        """Write the resolved settings."""
        self.write("config.json", record)

    def write_receipt(self, record: dict[str, Any]) -> None:
        """Write the receipt; the run is finished then."""
        self.write("receipt.json", record)

    def write(self, file: str, record: Any) -> None:
        """Replace a file by a JSON document, or by text as it is."""
        text = record if isinstance(record, str) else json.dumps(record, indent=1, ensure_ascii=False) + "\n"
        with disk_errors(self.path):
            write_durably(self.path / file, text.encode())

    def write_rows(self, file: str, rows: Iterable[dict[str, Any]]) -> None:
        """Replace a file by JSON lines."""
        self.write(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))

    def append_metrics(self, record: dict[str, Any]) -> None:
        """Add one record to `metrics.jsonl`."""
        with disk_errors(self.path), open(self.path / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """Return the records of `metrics.jsonl`; a last line that a kill cut is left out."""
        try:
            lines = (self.path / "metrics.jsonl").read_text(encoding="utf-8").split("\n")
        except FileNotFoundError:
            return []
        records = []
        for line in lines[:-1]:
            with contextlib.suppress(ValueError):
                records.append(json.loads(line))
        return records

    def rewind_metrics(self, step: int) -> None:
        """Drop the records after a step: they are of work that is done again."""
        self.write_rows("metrics.jsonl", [row for row in self.metrics() if row.get("step", 0) <= step])

    @contextlib.contextmanager
    def writing_output(self) -> Iterator[Path]:
        """Give an empty folder; when the block ends without an error it becomes `output`."""
        fresh = self.path / ".output"
        with disk_errors(self.path):
            shutil.rmtree(fresh, ignore_errors=True)
            fresh.mkdir(parents=True)
            yield fresh
            place_folder(fresh, self.output)

    def read(self, file: str) -> dict[str, Any]:
        """Return a JSON object that was written. Raises: ModelNotFound, BadFile."""
        try:
            record = json.loads((self.path / file).read_bytes())
        except FileNotFoundError:
            raise ModelNotFound(f"there is no run `{self.name}`", hint="hearth runs list") from None
        except ValueError as error:
            raise BadFile(f"`{self.path / file}` is not JSON", why=str(error)[:200]) from None
        if not isinstance(record, dict):
            raise BadFile(f"`{self.path / file}` is no JSON object")
        return record


def list_runs(home: Path) -> list[RunFolder]:
    """Return the runs below home that have a configuration, by name."""
    folder = home / "runs"
    if not folder.is_dir():
        return []
    runs = [RunFolder(home, path.name) for path in sorted(folder.iterdir()) if _NAME.fullmatch(path.name)]
    return [run for run in runs if run.exists]


def find_run(home: Path, name: str) -> RunFolder:
    """Return a run that is there. Raises: ModelNotFound, naming those there are; UsageError."""
    run = RunFolder(home, name)
    if not run.exists:
        raise ModelNotFound(f"there is no run `{name}`",
                            why=f"there are: {', '.join(one.name for one in list_runs(home)) or 'none'}",
                            hint="hearth runs list")
    return run


def find_output(home: Path, text: str) -> Path:
    """Return the folder that an adapter's name means: a path, or the output of a finished run.

    Raises: ModelNotFound, UsageError.
    """
    if os.sep in text or Path(text).is_dir():
        return Path(text)
    run = find_run(home, text)
    if not run.is_finished:
        raise UsageError(f"the run `{text}` is not finished", hint="hearth tune ... --resume")
    return run.output
