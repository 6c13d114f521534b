"""A model's words made safe to show: an answer may not move the cursor or set a window title."""

from __future__ import annotations

import re
from typing import TextIO

_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    """Replace control characters other than newline and tab by U+FFFD.

    C0, DEL and C1 controls carry the escape sequences of terminals (ECMA-48, section 5).
    """
    return _CONTROLS.sub("\ufffd", text)


def for_stream(text: str, stream: TextIO) -> str:
    """Return text as it is for a file or pipe, and printable for a terminal."""
    return printable(text) if stream.isatty() else text
