"""Sampled completions of a run with their verdicts, one Parquet file per step.

Any reader of Parquet takes the whole folder as one table. Parquet is read and written by pyarrow, which comes
with the `tune` extra.
"""

from __future__ import annotations

import importlib
import io
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from types import ModuleType
from typing import Any

from openhearth.durable import disk_errors, write_durably
from openhearth.errors import BadFile, Unsupported
from openhearth.runs.folder import RunFolder

_FILE = re.compile(r"step-(\d{8})\.parquet")


@dataclass(frozen=True)
class SampledRollout:
    """One completion. prompt: the question's text. tokens: of the completion.

    reward: None where the grader failed. Example: ``SampledRollout(3, "sum/0", 0, "4 - 1 =", "3", "correct",
    1.0, "", 2, "stop")``.
    """

    step: int
    problem: str
    sample: int
    prompt: str
    text: str
    verdict: str
    reward: float | None
    reason: str
    tokens: int
    finish_reason: str


def load_parquet() -> tuple[ModuleType, ModuleType]:
    """Return pyarrow and its Parquet module. Raises: Unsupported with the command that brings them."""
    try:
        return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ModuleNotFoundError:
        raise Unsupported("pyarrow is not installed", why="rollouts are kept as Parquet",
                          hint='pip install "openhearth[tune]"') from None


def write_rollouts(run: RunFolder, step: int, rollouts: Sequence[SampledRollout]) -> None:
    """Replace what a run keeps of a step. Raises: NotEnoughDisk, Unsupported."""
    arrow, parquet = load_parquet()
    kinds = {"int": arrow.int64(), "str": arrow.string(), "float | None": arrow.float64()}
    schema = arrow.schema([(field.name, kinds[str(field.type)]) for field in fields(SampledRollout)])
    written = io.BytesIO()
    parquet.write_table(arrow.Table.from_pylist([asdict(one) for one in rollouts], schema), written,
                        compression="zstd")
    with disk_errors(run.path):
        write_durably(run.path / "rollouts" / f"step-{step:08d}.parquet", written.getvalue())


def rollout_steps(run: RunFolder) -> list[int]:
    """Return the steps of which a run keeps rollouts."""
    folder = run.path / "rollouts"
    found = (_FILE.fullmatch(path.name) for path in (folder.iterdir() if folder.is_dir() else ()))
    return sorted(int(match[1]) for match in found if match)


def read_rollouts(run: RunFolder, step: int) -> list[SampledRollout]:
    """Return what a run keeps of a step. Raises: BadFile, Unsupported."""
    arrow, parquet = load_parquet()
    path = run.path / "rollouts" / f"step-{step:08d}.parquet"
    try:
        rows: list[dict[str, Any]] = parquet.read_table(path).to_pylist()
        return [SampledRollout(**row) for row in rows]
    except (OSError, TypeError, arrow.ArrowException) as error:
        raise BadFile(f"`{path}` cannot be read", why=str(error)[:300]) from None
