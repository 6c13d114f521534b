"""Problem files: JSON lines, bounded, with the place of a mistake in the message.

Does not: fetch anything; a path is given.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from openhearth.errors import BadFile, UsageError

_MAX_BYTES = 256 << 20


def read_bytes(path: Path) -> bytes:
    """Return a whole file. Raises: UsageError when there is none, BadFile above 256 MiB."""
    try:
        size = path.stat().st_size
        if size > _MAX_BYTES:
            raise BadFile(f"`{path}` has {size} bytes", why=f"the limit is {_MAX_BYTES}", hint="split it")
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"`{path}` cannot be read", why=f"{error.strerror}", hint="path=FILE") from error


def read_rows(path: Path, fields: tuple[str, ...]) -> list[dict[str, Any]]:
    """Return the objects of a JSON lines file; each must have these fields, as text.

    Raises: UsageError when there is no file; BadFile with the line that is wrong, or for an empty file.
    """
    rows = []
    for number, line in enumerate(read_bytes(path).split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise BadFile(f"{path}:{number}: not JSON", why=f"{error}",
                          hint="one JSON object per line") from error
        missing = [name for name in fields if not isinstance(row, dict) or not isinstance(row.get(name), str)]
        if missing:
            raise BadFile(f"{path}:{number}: no text in `{missing[0]}`", hint="one JSON object per line",
                          why=f"expected an object with {', '.join(fields)}")
        rows.append(row)
    if not rows:
        raise BadFile(f"`{path}` holds no problems", hint="one JSON object per line")
    return rows


def hash_files(paths: list[Path]) -> str:
    """Return ``sha256:...`` over the content of files, in order."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(hashlib.sha256(read_bytes(path)).digest())
    return f"sha256:{digest.hexdigest()}"
