"""Where the adapters of `hearth serve` are, read at the start and again on SIGHUP.

Does not: serve them, or decide which model one belongs to (`server.assign_adapters`).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from openhearth.cli.output import print_note
from openhearth.config import Config
from openhearth.errors import UsageError

if TYPE_CHECKING:
    from openhearth.models.adapter_files import StoredAdapter
    from openhearth.server import LoadPlan

_ADAPTER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,95}")


class AdapterSources:
    """Where adapters are: --adapter and --adapter-dir. Read at the start, and again when told to."""

    def __init__(self, given: list[str], folder: Path | None, config: Config) -> None:
        self._folder, self._config = folder, config
        self._places: dict[str, str] = {}
        self._models: dict[str, str] = {}
        for one in given:
            names, equals, where = one.partition("=")
            name, at, model = names.partition("@")
            if not equals or not where or not _ADAPTER_NAME.fullmatch(name) or name in self._places \
                    or (at and not model):
                raise UsageError(f"--adapter is `{one}`", why="expected a name of its own, and where it is",
                                 hint="--adapter polite=runs/polite/output")
            self._places[name] = where
            if model:
                self._models[name] = model

    def read(self) -> dict[str, StoredAdapter]:
        """Return name -> adapter. Raises: UsageError, and as `read_adapter`."""
        from openhearth.models.adapter_files import CONFIG, read_adapter
        from openhearth.runs import find_output

        found = {name: read_adapter(find_output(self._config.home, where))
                 for name, where in self._places.items()}
        if self._folder is not None and not self._folder.is_dir():
            raise UsageError(f"--adapter-dir `{self._folder}` is no folder")
        for place in sorted(self._folder.iterdir()) if self._folder is not None else ():
            if not (place / CONFIG).exists():
                continue
            if not _ADAPTER_NAME.fullmatch(place.name) or place.name in found:
                raise UsageError(f"the adapter `{place}` cannot be named after its folder",
                                 why="expected letters, digits, `.`, `_` and `-`, and a name of its own")
            found[place.name] = read_adapter(place)
        return found

    def assign(self, found: dict[str, StoredAdapter],
               plans: dict[str, LoadPlan]) -> dict[str, dict[str, StoredAdapter]]:
        """Return model's name -> its adapters. Raises: UsageError for one that fits none, or several."""
        from openhearth.server import assign_adapters

        assigned = assign_adapters(found, plans, wanted=self._models)
        for base, adapters in assigned.items():
            stored = plans[base].stored
            for name, adapter in adapters.items():
                trained_on = adapter.base_weights_sha256
                if trained_on and trained_on != stored.weights_sha256:
                    print_note(f"adapter `{name}` was trained on other weights ({trained_on[:16]}) than "
                               f"`{stored.name}` ({stored.weights_sha256[:16]})")
        return assigned
