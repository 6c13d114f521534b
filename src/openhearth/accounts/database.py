"""The SQLite file of keys and usage: how it is opened, and what is in it.

It is written ahead (WAL) and synced at every commit: readers never wait, and what was committed is there
after a kill or a power cut. Several processes may have it open.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from openhearth.errors import BadFile, UsageError

_VERSION = 1
_SCHEMA = """
CREATE TABLE keys (
  name TEXT PRIMARY KEY, sha256 TEXT NOT NULL UNIQUE, role TEXT NOT NULL, created_at INTEGER NOT NULL,
  expires_at INTEGER, revoked_at INTEGER, requests_per_minute INTEGER, tokens_per_minute INTEGER,
  tokens_per_day INTEGER, tokens_per_month INTEGER, tokens_total INTEGER);
CREATE TABLE usage (
  key TEXT NOT NULL, hour INTEGER NOT NULL, model TEXT NOT NULL, requests INTEGER NOT NULL,
  errors INTEGER NOT NULL, prompt_tokens INTEGER NOT NULL, cached_tokens INTEGER NOT NULL,
  completion_tokens INTEGER NOT NULL, PRIMARY KEY (key, hour, model)) WITHOUT ROWID;
"""


def path_of(home: Path) -> Path:
    """Return where keys and usage are kept, below the store's folder."""
    return home / "accounts.sqlite"


def open_database(path: Path) -> sqlite3.Connection:
    """Open the file, made when it is not there, for one caller at a time; readable by its owner only.

    Raises: UsageError when it cannot be opened, BadFile when it is something else.
    """
    with database_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        connection = sqlite3.connect(path, timeout=10, isolation_level=None, check_same_thread=False)
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            with writing(connection):
                version = connection.execute("PRAGMA user_version").fetchone()[0]
                if version == 0:
                    for statement in _SCHEMA.split(";"):
                        connection.execute(statement)
                    connection.execute(f"PRAGMA user_version = {_VERSION}")
                elif version != _VERSION:
                    raise BadFile(f"`{path}` has version {version}, this hearth knows {_VERSION}",
                                  hint="the hearth that wrote it, or another HEARTH_HOME")
        except BaseException:
            connection.close()
            raise
    return connection


@contextmanager
def writing(connection: sqlite3.Connection) -> Iterator[None]:
    """Do all of the block's changes or none; other writers wait."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


@contextmanager
def database_errors(path: Path) -> Iterator[None]:
    """Turn what SQLite and the disk refuse into errors of ours."""
    try:
        yield
    except (OSError, sqlite3.OperationalError) as error:
        raise UsageError(f"`{path}` cannot be used", why=str(error),
                         hint="HEARTH_HOME=/a/folder/of/yours") from None
    except sqlite3.DatabaseError as error:
        raise BadFile(f"`{path}` is no file of keys and usage", why=str(error),
                      hint="move it away to begin a new one") from None
