"""Who may ask a server, and how they are spoken to: checked in a moment, before anything is loaded."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from openhearth import accounts, listening
from openhearth.accounts import Keys, UsageStore
from openhearth.cli.output import print_note
from openhearth.config import Config
from openhearth.errors import UsageError

_ORIGIN = re.compile(r"\*|[a-z][a-z0-9+.-]*://[A-Za-z0-9.:_\[\]-]+")


@dataclass(frozen=True)
class Guard:
    """Who may ask, and how they are spoken to; all of it is known to be good before anything is loaded."""

    keys: Keys | None
    usage: UsageStore | None
    tls: listening.Tls | None
    origins: tuple[str, ...]


def read_guard(config: Config, host: str, *, api_key_file: Path | None, has_store: bool,
               tls_cert: Path | None, tls_key: Path | None, origins: Sequence[str]) -> Guard:
    """Return who may ask at an address. Raises: UsageError, and as `read_keys`."""
    if api_key_file is not None and has_store:
        raise UsageError("--keys and --api-key-file exclude each other",
                         why="one says which keys hold, the other too", hint="--keys")
    has_keys = has_store or api_key_file is not None
    if not has_keys and not listening.is_loopback(host):
        raise UsageError(f"--host is `{host}` and there are no keys",
                         why="everyone who reaches that address could use the model",
                         hint="hearth keys create NAME, then --keys; or --host 127.0.0.1")
    if (tls_cert is None) != (tls_key is None):
        raise UsageError("--tls-cert and --tls-key go together", hint="--tls-cert cert.pem --tls-key key.pem")
    for origin in origins:
        if not _ORIGIN.fullmatch(origin) or (origin == "*" and not has_keys):
            raise UsageError(f"--cors is `{origin}`", hint="--cors https://chat.example.org",
                             why="expected what browsers send as Origin, or `*` on a server with keys")
    keys = None
    if has_store:
        keys = accounts.KeyStore(config.home).keys()
        if not any(key.state(time.time()) == "good" for key in keys.now()):
            print_note("no key is good yet: hearth keys create NAME")
    elif api_key_file is not None:
        keys = accounts.read_keys(api_key_file)
    return Guard(keys, accounts.UsageStore(config.home) if has_keys else None,
                  None if tls_cert is None else listening.Tls(tls_cert, tls_key), tuple(origins))
