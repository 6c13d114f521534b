"""Keys in a text file, for servers without a key store: lines of NAME SHA256 [ROLE]; `#` begins a comment.

The file is read again when it changes. It never holds a key, and its keys have neither limits nor an end.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

from openhearth.accounts.keys import NAME, Key, Keys, Role
from openhearth.errors import BadFile, UsageError

_LINE = re.compile(rf"(?P<name>{NAME.pattern})\s+(?P<sha256>[0-9a-f]{{64}})(\s+(?P<role>\S+))?")


def read_keys(path: Path) -> Keys:
    """Read a file of keys, to be read again whenever it changes.

    Raises: UsageError when it cannot be read, BadFile for a line that is no key.
    """
    seen = _stamp(path)

    def reload() -> list[Key] | None:
        nonlocal seen
        stamp = _stamp(path)
        if stamp == seen:
            return None
        seen = stamp
        return _read(path)

    return Keys(_read(path), reload)


def _stamp(path: Path) -> tuple[int, ...] | None:
    """Return what changes when a file does, None when there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _read(path: Path) -> list[Key]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the key file `{path}` cannot be read", why=str(error),
                         hint="hearth serve --keys takes those of `hearth keys`") from None
    found: dict[str, Key] = {}
    for place, line in enumerate(lines, start=1):
        entry = line.partition("#")[0].strip()
        if not entry:
            continue
        matched = _LINE.fullmatch(entry)
        role = matched["role"] or "user" if matched else ""
        if role not in get_args(Role) or matched["name"] in found:
            raise BadFile(f"line {place} of `{path}` is no key",
                          why="expected a name that no other line has, the sha256 of the key in hex, and "
                              "perhaps `admin`",
                          hint="echo \"alice $(printf %s \"$KEY\" | sha256sum | cut -d' ' -f1)\" >> keys")
        found[matched["name"]] = Key(matched["name"], matched["sha256"], role)
    if not found:
        raise BadFile(f"`{path}` holds no key", why="no request could be served")
    return list(found.values())
