"""API keys: a file of names and hashes, and which name a request's key has.

A line is `NAME SHA256`, the hash in hex of the key's bytes; `#` begins a comment. The file never holds a key:
keys are long and random, so a plain hash of one tells nothing about it.

Does not: make keys, count their use, or let them expire.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from pathlib import Path

from openhearth.errors import BadFile, UsageError

_LINE = re.compile(r"(?P<name>[A-Za-z0-9_.-]{1,64})\s+(?P<sha256>[0-9a-f]{64})")


class Keys:
    """Keys that a server takes, by name.

    Example: ``Keys({"alice": hashlib.sha256(b"secret").hexdigest()}).find("secret") == "alice"``.
    """

    def __init__(self, sha256_of_name: Mapping[str, str]) -> None:
        self._sha256_of_name = dict(sha256_of_name)

    def find(self, key: str) -> str | None:
        """Return the name of a key, None for one that is not among them; takes as long for either."""
        sha256 = hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
        found = None
        for name, known in self._sha256_of_name.items():
            if hmac.compare_digest(known, sha256):
                found = name
        return found


def read_keys(path: Path) -> Keys:
    """Read a file of keys. Raises: UsageError when it cannot be read, BadFile for a line that is no key."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the key file `{path}` cannot be read", why=str(error)) from None
    found: dict[str, str] = {}
    for place, line in enumerate(lines, start=1):
        entry = line.partition("#")[0].strip()
        if not entry:
            continue
        matched = _LINE.fullmatch(entry)
        if matched is None or matched["name"] in found:
            raise BadFile(f"line {place} of `{path}` is no key",
                          why="expected a name that no other line has and the sha256 of the key, in hex",
                          hint="echo \"alice $(printf %s \"$KEY\" | sha256sum | cut -d' ' -f1)\" >> keys")
        found[matched["name"]] = matched["sha256"]
    if not found:
        raise BadFile(f"`{path}` holds no key", why="no request could be served")
    return Keys(found)
