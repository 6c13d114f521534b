"""Keys in the store's database: made, listed and revoked by `hearth keys`, taken by `hearth serve --keys`.

A key's name is who pays: a new key of a revoked or expired one's name goes on with its usage.
"""

from __future__ import annotations

import time
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from openhearth.accounts.database import database_errors, open_database, path_of, writing
from openhearth.accounts.keys import NAME, Key, KeyLimits, Keys, Role, hash_secret, make_secret
from openhearth.errors import ModelNotFound, UsageError

_LIMITS = tuple(one.name for one in fields(KeyLimits))
_COLUMNS = ("name", "sha256", "role", "created_at", "expires_at", "revoked_at", *_LIMITS)


class KeyStore:
    """The keys below a store's folder. Example: ``KeyStore(home).create("alice", expires_at=None)``."""

    def __init__(self, home: Path) -> None:
        self.path = path_of(home)
        self._connection = open_database(self.path)

    def create(self, name: str, *, role: Role = "user", limits: KeyLimits = KeyLimits(),
               expires_at: int | None = None) -> str:
        """Make a key and return it; it cannot be had again. Raises: UsageError for a name that has one."""
        if not NAME.fullmatch(name):
            raise UsageError(f"the key's name is `{name[:80]}`", hint="hearth keys create alice",
                             why="expected 1 to 64 of a-z, A-Z, 0-9, `.`, `_` and `-`")
        for limit, value in asdict(limits).items():
            if value is not None and value < 1:
                raise UsageError(f"{limit} is `{value}`", why="expected 1 or more",
                                 hint=f"hearth keys revoke {name} ends a key")
        now, secret = int(time.time()), make_secret()
        if expires_at is not None and expires_at <= now:
            raise UsageError(f"the key `{name}` would have expired already", hint="--expires 30d")
        row = {"name": name, "sha256": hash_secret(secret), "role": role, "created_at": now,
               "expires_at": expires_at, "revoked_at": None, **asdict(limits)}
        with database_errors(self.path), writing(self._connection):
            known = next((key for key in self._read() if key.name == name), None)
            if known is not None and known.state(now) == "good":
                raise UsageError(f"there is a key `{name}` already", hint=f"hearth keys revoke {name}")
            places = ", ".join(f":{column}" for column in _COLUMNS)
            self._connection.execute(f"REPLACE INTO keys ({', '.join(_COLUMNS)}) VALUES ({places})", row)
        return secret

    def revoke(self, name: str) -> Key:
        """End a key; servers that run see it at once. Raises: ModelNotFound for an unknown name."""
        with database_errors(self.path), writing(self._connection):
            self._connection.execute("UPDATE keys SET revoked_at = ? WHERE name = ? AND revoked_at IS NULL",
                                     (int(time.time()), name))
            for key in self._read():
                if key.name == name:
                    return key
        raise ModelNotFound(f"there is no key `{name}`", hint="hearth keys list")

    def list(self) -> list[Key]:
        """Return all keys by name, those that are no longer good included."""
        with database_errors(self.path):
            return self._read()

    def keys(self) -> Keys:
        """Return the keys for a server, which sees at its next look what other `KeyStore`s changed."""
        seen = None

        def reload() -> list[Key] | None:
            nonlocal seen
            with database_errors(self.path):
                version = self._connection.execute("PRAGMA data_version").fetchone()[0]
                if version == seen:
                    return None
                found = self._read()
                seen = version
                return found

        return Keys(reload=reload)

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def _read(self) -> list[Key]:
        rows = self._connection.execute(f"SELECT {', '.join(_COLUMNS)} FROM keys ORDER BY name")
        return [_key(dict(zip(_COLUMNS, row, strict=True))) for row in rows.fetchall()]


def _key(row: dict[str, Any]) -> Key:
    limits = KeyLimits(**{name: row.pop(name) for name in _LIMITS})
    return Key(limits=limits, **row)
