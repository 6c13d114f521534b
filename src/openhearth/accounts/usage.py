"""What was used, by key, model and hour (UTC): in the store's database, added to and never rewritten.

Does not: know prompts or answers.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from openhearth.accounts.database import database_errors, open_database, path_of, writing

HOUR_S = 3600
_COUNTS = ("requests", "errors", "prompt_tokens", "cached_tokens", "completion_tokens")


@dataclass(slots=True)
class Usage:
    """Counts. errors are requests that failed; cached_tokens are prompt tokens that were not computed.

    Example: ``Usage(requests=1, prompt_tokens=20, completion_tokens=5)``.
    """

    requests: int = 0
    errors: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0

    def add(self, other: Usage) -> None:
        """Add to these counts in place."""
        for name in _COUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    @property
    def num_tokens(self) -> int:
        """Tokens that limits count: of prompts, cached ones included, and of answers."""
        return self.prompt_tokens + self.completion_tokens


class Place(NamedTuple):
    """Where usage belongs. hour: its first second since 1970. Example: ``Place("alice", 0, "smollm2")``."""

    key: str
    hour: int
    model: str


class Totals(NamedTuple):
    """Tokens of a key. Example: ``Totals(day=10, month=300, total=4000)``."""

    day: int
    month: int
    total: int


class UsageStore:
    """Usage below a store's folder; may be called from any thread."""

    def __init__(self, home: Path) -> None:
        self.path = path_of(home)
        self._lock = threading.Lock()
        self._connection = open_database(self.path)

    def add(self, found: Mapping[Place, Usage]) -> None:
        """Add counts, all or none; they are on disk on return. Raises: UsageError, BadFile."""
        columns = ", ".join(_COUNTS)
        more = ", ".join(f"{name} = {name} + excluded.{name}" for name in _COUNTS)
        rows = [(*place, *(getattr(usage, name) for name in _COUNTS)) for place, usage in found.items()]
        with self._lock, database_errors(self.path), writing(self._connection):
            self._connection.executemany(
                f"INSERT INTO usage (key, hour, model, {columns}) VALUES (?, ?, ?, ?, ?, ?, ?, ?) "
                f"ON CONFLICT (key, hour, model) DO UPDATE SET {more}", rows)

    def read(self, *, since: float = 0, until: float = float("inf"),
             key: str | None = None) -> list[tuple[Place, Usage]]:
        """Return usage by key, hour and model, of hours that begin in a span of time."""
        query = f"SELECT key, hour, model, {', '.join(_COUNTS)} FROM usage WHERE hour >= ? AND hour < ?"
        values: list[float | str] = [since, until]
        if key is not None:
            query += " AND key = ?"
            values.append(key)
        with self._lock, database_errors(self.path):
            rows = self._connection.execute(f"{query} ORDER BY key, hour, model", values).fetchall()
        return [(Place(*row[:3]), Usage(*row[3:])) for row in rows]

    def totals(self, keys: Iterable[str], now: float) -> dict[str, Totals]:
        """Return the tokens of keys, of this day and month (UTC) and of all time."""
        query = ("SELECT TOTAL(CASE WHEN hour >= ? THEN prompt_tokens + completion_tokens END), "
                 "TOTAL(CASE WHEN hour >= ? THEN prompt_tokens + completion_tokens END), "
                 "TOTAL(prompt_tokens + completion_tokens) FROM usage WHERE key = ?")
        day, month = day_and_month(now)
        with self._lock, database_errors(self.path):
            return {key: Totals(*map(int, self._connection.execute(
                query, (day, month, key)).fetchone())) for key in keys}

    def close(self) -> None:
        """Close the file."""
        self._connection.close()


def day_and_month(now: float) -> tuple[int, int]:
    """Return when the day and the month of a time began (UTC), in seconds since 1970."""
    day = datetime.fromtimestamp(now, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return int(day.timestamp()), int(day.replace(day=1).timestamp())
