"""Where rows come from: files here, or a data set of a hub, kept in the store like a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from openhearth import hub
from openhearth.config import Config
from openhearth.errors import ModelNotFound


def find_files(data: Sequence[str], config: Config) -> list[Path]:
    """Return the files that --data names; `hub:datasets/owner/name[@revision][:file]` is fetched if need be.

    Raises: ModelNotFound for a data set without rows, and as `hub.pull` (Offline where that is asked for).
    """
    files: list[Path] = []
    for text in data:
        if not text.startswith("hub:"):
            files.append(Path(text))
            continue
        found = hub.data_files(hub.pull(text, config).path)
        if not found:
            raise ModelNotFound(f"`{text}` has no rows", why=f"expected {', '.join(hub.DATA_SUFFIXES)} there",
                                hint="hub:datasets/owner/name, or with :file behind it")
        files += found
    return files
