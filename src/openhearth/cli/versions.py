"""Which code is running: versions, and the commit when it runs from a checkout."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from pathlib import Path

import openhearth


def read_versions() -> dict[str, str]:
    """Return versions of openhearth, python and torch, and `commit` of a git checkout."""
    versions = {"openhearth": _version("openhearth"), "python": platform.python_version(),
                "torch": _version("torch")}
    commit = find_commit(Path(openhearth.__file__).parents[2])
    return {**versions, "commit": commit} if commit else versions


def find_commit(root: Path) -> str | None:
    """Return the commit of our checkout at `root`, with `-dirty` when files differ; None elsewhere."""
    if not (root / ".git").exists() or not (root / "src" / "openhearth").is_dir():
        return None
    commit = _git(root, "rev-parse", "HEAD")
    if not commit:
        return None
    return f"{commit}-dirty" if _git(root, "status", "--porcelain", "--untracked-files=no") else commit


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "unknown"


def _git(root: Path, *args: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(root), *args], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
