"""Which of `hearth run`'s two arguments is the prompt, and what stdin adds to it."""

from __future__ import annotations

import os
import stat
import sys
import threading
from pathlib import Path
from typing import BinaryIO, TextIO

from openhearth.cli.output import print_note
from openhearth.errors import UsageError
from openhearth.units import format_bytes

MAX_STDIN_BYTES = 32 * 2**20
_PATIENCE_S = 3.0


def split_arguments(first: str | None, second: str | None) -> tuple[str | None, str | None]:
    """Return (model, prompt).

    A single argument with white space in it that is no existing path is the prompt, for the default
    model: no model reference has a space. Anything else that stands alone is the model.
    """
    if second is None and first is not None and any(c.isspace() for c in first) and not _exists(first):
        return None, first
    return first, second


def _exists(text: str) -> bool:
    try:
        return Path(text).expanduser().exists()
    except (OSError, ValueError, RuntimeError):
        return False


def is_piped(stream: TextIO) -> bool:
    """Return whether stdin is a file, pipe or socket that may carry text (no terminal, no /dev/null)."""
    try:
        mode = os.fstat(stream.fileno()).st_mode
    except (OSError, ValueError, AttributeError):
        return False
    return stat.S_ISREG(mode) or stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


def read_piped(stream: BinaryIO) -> str:
    """Read all of stdin as UTF-8; says so on stderr when nothing ends it within three seconds.

    Raises: UsageError when it is no UTF-8 or larger than 32 MiB.
    """
    note = threading.Timer(_PATIENCE_S, print_note,
                           ["reading the prompt from stdin until it ends (`< /dev/null` for none)"])
    note.daemon = True
    note.start()
    try:
        content = stream.read(MAX_STDIN_BYTES + 1)
    finally:
        note.cancel()
    if len(content) > MAX_STDIN_BYTES:
        raise UsageError(f"the prompt on stdin is larger than {format_bytes(MAX_STDIN_BYTES)}",
                         why="no model reads that much at once",
                         hint="head -c 100000 FILE | hearth run MODEL")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"the prompt on stdin is no UTF-8 at byte {error.start}",
                         hint="iconv -f latin1 -t utf-8 FILE | hearth run MODEL") from None


def gather_prompt(argument: str | None, *, is_raw: bool) -> str | None:
    """Return the prompt: the argument, a blank line, what is piped in; None when there is neither.

    The newline that ends a pipe is dropped, except for raw prompts without an argument, which stay
    byte for byte. Raises: UsageError for an empty prompt, and as `read_piped`.
    """
    piped = read_piped(sys.stdin.buffer) if sys.stdin is not None and is_piped(sys.stdin) else ""
    if argument is None and not piped:
        if sys.stdin is not None and sys.stdin.isatty():
            return None
        raise UsageError("there is no prompt", why="no PROMPT argument was given and stdin is empty",
                         hint='hearth run smollm2 "What is the capital of France?"')
    if not (is_raw and argument is None):
        piped = piped.removesuffix("\n")
    prompt = "\n\n".join(part for part in (argument, piped) if part)
    if not prompt.strip() and not (is_raw and prompt):
        raise UsageError("the prompt is empty", hint='hearth run smollm2 "What is the capital of France?"')
    return prompt
