"""Hashes of what went into a run and of what came out."""

from __future__ import annotations

import hashlib
from pathlib import Path


def hash_file(path: Path) -> str:
    """Return the sha256 of a file's bytes, 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_files(folder: Path) -> dict[str, str]:
    """Return relative path -> sha256 of every file below a folder, in order of path."""
    return {path.relative_to(folder).as_posix(): hash_file(path)
            for path in sorted(folder.rglob("*")) if path.is_file()}
