"""Packages of the `tune` extra, imported when a task needs one."""

from __future__ import annotations

import importlib
from importlib.metadata import version
from types import ModuleType

from openhearth.errors import Unsupported


def need(module: str, package: str) -> ModuleType:
    """Import a module of an extra. Raises: Unsupported with the command that brings it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != module.split(".")[0]:
            raise
        raise Unsupported(f"`{package}` is not installed", why="this task or grader is made with it",
                          hint='pip install "openhearth[tune]"') from error


def version_of(package: str) -> str:
    """Return ``name version`` of an installed package, for receipts."""
    return f"{package} {version(package)}"
