"""The one place that prints: results on stdout, everything else on stderr.

Does not: decide what a result is; verbs hand over plain rows and records.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from openhearth.errors import HearthError


def print_error(error: HearthError) -> None:
    """Print an error on stderr."""
    label = "\033[1;31merror:\033[0m" if use_colour(sys.stderr) else "error:"
    print_note(f"{label} {error}")


def use_colour(stream: Any) -> bool:
    """Return whether a stream is a terminal that wants colour (NO_COLOR, TERM=dumb are respected)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def print_json(record: Any) -> None:
    """Print one JSON document on stdout."""
    print(json.dumps(record, ensure_ascii=False, indent=2))


def print_note(text: str) -> None:
    """Print a remark for people on stderr."""
    print(text, file=sys.stderr)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print aligned columns on stdout; the header only when there are rows."""
    if not rows:
        return
    widths = [max(len(str(row[i])) for row in [columns, *rows]) for i in range(len(columns))]
    for row in [columns, *rows]:
        cells = [str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)]
        print("  ".join(cells).rstrip())


def print_fields(fields: Mapping[str, str]) -> None:
    """Print `name  value` lines on stdout, values aligned; empty values are left out."""
    shown = {name: value for name, value in fields.items() if value not in ("", None)}
    width = max((len(name) for name in shown), default=0)
    for name, value in shown.items():
        first, *rest = str(value).splitlines() or [""]
        print(f"{name.ljust(width)}  {first}")
        for line in rest:
            print(f"{' ' * width}  {line}")


def confirm(question: str, *, is_yes: bool) -> bool:
    """Ask before deleting; `--yes` answers. Without a terminal the answer is no."""
    if is_yes:
        return True
    if not sys.stdin.isatty():
        return False
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in {"y", "yes"}
