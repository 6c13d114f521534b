"""Names that come out of files, made safe to print.

A tensor or file name may hold terminal escapes, line breaks or a megabyte of text; errors show a
short printable form in backticks instead.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePath

MAX_SHOWN_CHARS = 80
MAX_SHOWN_NAMES = 5


def quoted(name: object) -> str:
    """Return a name in backticks, escapes instead of unprintable characters; paths whole, others cut."""
    text = str(name)
    limit = len(text) if isinstance(name, PurePath) else MAX_SHOWN_CHARS
    cut = text[:limit].replace("`", "'")
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)
    return f"`{shown}`" if len(text) <= limit else f"`{shown}...` ({len(text)} characters)"


def quoted_list(names: Iterable[object]) -> str:
    """Return at most five quoted names and how many more there are."""
    every = sorted(names, key=str)
    shown = ", ".join(quoted(name) for name in every[:MAX_SHOWN_NAMES])
    rest = len(every) - MAX_SHOWN_NAMES
    return f"{shown} and {rest} more" if rest > 0 else shown
