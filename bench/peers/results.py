"""The results file that several commands write to: rows of one work replace those of before, others stay."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def merge_rows(path: Path, rows: Sequence[dict[str, Any]], works: Sequence[str]) -> list[dict[str, Any]]:
    """Return rows, and after them those of the file that are of other works."""
    before = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    return [*rows, *(row for row in before if row["work"] not in works)]


def write_results(path: Path, record: dict[str, Any]) -> None:
    """Write a record whole or not at all."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    part.replace(path)
