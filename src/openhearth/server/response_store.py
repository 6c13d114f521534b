"""Answers of `/v1/responses` that clients may ask for again, in SQLite.

Each belongs to the key that made it: no other key finds it. What is older than the time that the server keeps
answers for is gone. A killed server leaves a store that opens: SQLite's write-ahead log sees to that.

Does not: encrypt; the file can be read by its owner alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openhearth.errors import BadFile

_SCHEMA = """
CREATE TABLE IF NOT EXISTS responses (
    id TEXT PRIMARY KEY, owner TEXT NOT NULL, created_s REAL NOT NULL,
    response TEXT NOT NULL, input TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS responses_created ON responses (created_s);
"""
_SWEEP_S = 600
_DAY_S = 86_400


@dataclass(frozen=True)
class StoredResponse:
    """A response as clients read it, and the items that it was given. Example: ``StoredResponse({}, [])``."""

    response: dict[str, Any]
    input_items: list[dict[str, Any]]


class ResponseStore:
    """Responses by id and owner. Use from several threads is safe.

    path: None keeps them in memory for as long as the server runs. keep_days: 0 keeps none.
    Raises: BadFile for a file that is no such store. Example: ``ResponseStore(None).get("alice", "resp_1")``.
    """

    def __init__(self, path: Path | None, *, keep_days: float = 30.0,
                 clock: Callable[[], float] = time.time) -> None:
        self.keep_days = keep_days
        self._clock, self._lock, self._swept_s = clock, threading.Lock(), 0.0
        if path is not None and keep_days:
            path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        self._database = sqlite3.connect(path if path is not None and keep_days else ":memory:", timeout=10,
                                         check_same_thread=False, isolation_level=None)
        try:
            self._database.executescript(f"PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; {_SCHEMA}")
        except sqlite3.DatabaseError as error:
            self._database.close()
            raise BadFile(f"`{path}` is no store of responses", why=str(error),
                          hint="move it away, or --keep-responses 0") from None

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._database.close()

    def put(self, owner: str, response: dict[str, Any], input_items: list[dict[str, Any]]) -> None:
        """Keep a response."""
        with self._lock:
            self._sweep()
            self._database.execute("INSERT INTO responses VALUES (?, ?, ?, ?, ?)", (
                response["id"], owner, self._clock(), json.dumps(response), json.dumps(input_items)))

    def get(self, owner: str, response_id: str) -> StoredResponse | None:
        """Return a response of this owner, None when there is none."""
        if not response_id.isascii():
            return None
        with self._lock:
            self._sweep()
            row = self._database.execute("SELECT response, input FROM responses WHERE id = ? AND owner = ?",
                                         (response_id, owner)).fetchone()
        return None if row is None else StoredResponse(json.loads(row[0]), json.loads(row[1]))

    def delete(self, owner: str, response_id: str) -> bool:
        """Forget a response of this owner; False when there is none."""
        with self._lock:
            return self._database.execute("DELETE FROM responses WHERE id = ? AND owner = ?",
                                          (response_id, owner)).rowcount > 0

    def _sweep(self) -> None:
        now = self._clock()
        if now - self._swept_s >= _SWEEP_S:
            self._swept_s = now
            with contextlib.suppress(sqlite3.OperationalError):  # another server writes: it sweeps as well
                self._database.execute("DELETE FROM responses WHERE created_s < ?",
                                       (now - self.keep_days * _DAY_S,))
