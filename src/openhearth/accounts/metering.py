"""Counts what is used with each key, holds it to the key's limits, and writes it down.

Rates look at the last 60 seconds of this process; quotas at what the store has of all processes, read again
at every writing, and what is not written yet. A request is refused when a limit is reached, or when its
prompt would go over it; one that was admitted is answered to its end, so a quota can be overshot by what is
being answered.

Does not: lock (one event loop calls it); know HTTP.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from openhearth.accounts.keys import Key
from openhearth.accounts.usage import HOUR_S, Place, Totals, Usage, UsageStore, day_and_month
from openhearth.errors import LimitReached

SPAN_S = 60


class Window:
    """What was used in the last seconds, in steps of one."""

    def __init__(self, span_s: int = SPAN_S) -> None:
        self._used = 0
        self._span_s = span_s
        self._steps: deque[list[int]] = deque()

    def add(self, now: float, amount: int) -> None:
        """Count."""
        self._forget(now)
        if not self._steps or self._steps[-1][0] != int(now):
            self._steps.append([int(now), 0])
        self._steps[-1][1] += amount
        self._used += amount

    def sum(self, now: float) -> int:
        """Return what was used in the span that ends now."""
        self._forget(now)
        return self._used

    def wait_s(self, now: float, room: int) -> int:
        """Return in how many seconds no more than `room` will be left of what was used so far; 0 for now."""
        self._forget(now)
        left = self._used
        for second, amount in self._steps:
            if left <= room:
                break
            left -= amount
            wait = second + 1 + self._span_s - now
        return 0 if self._used <= room else math.ceil(wait)

    def _forget(self, now: float) -> None:
        while self._steps and self._steps[0][0] + 1 + self._span_s <= now:
            self._used -= self._steps.popleft()[1]


class Batch(NamedTuple):
    """What is to be written, and keys whose totals are to be read again."""

    usage: dict[Place, Usage]
    keys: frozenset[str]


class Meter:
    """Usage of all keys of a server. usage: where it is written, None for limits of this process alone.

    Example: ``meter.admit(key); meter.check_prompt(key, 20); meter.add(key, "smollm2", Usage(requests=1))``.
    """

    def __init__(self, usage: UsageStore | None = None, *,
                 clock: Callable[[], float] = time.time) -> None:
        self._usage, self._clock = usage, clock
        self._requests: dict[str, Window] = {}
        self._tokens: dict[str, Window] = {}
        self._totals: dict[str, Totals] = {}
        self._active: set[str] = set()
        self._unwritten: dict[Place, Usage] = {}
        self._writing: dict[Place, Usage] = {}

    def admit(self, key: Key) -> None:
        """Count a request towards the rate, unless a limit is reached. Raises: LimitReached."""
        now, limit = self._clock(), key.limits.requests_per_minute
        requests = self._requests.setdefault(key.name, Window())
        if limit is not None and (wait := requests.wait_s(now, limit - 1)):
            raise LimitReached(
                f"{requests.sum(now)} requests came with the key `{key.name}` in the last minute",
                why=f"its limit is {limit}", hint=f"try again in {wait} s", retry_after_s=wait)
        self.check_prompt(key, 0)
        requests.add(now, 1)

    def check_prompt(self, key: Key, prompt_tokens: int) -> None:
        """Refuse a prompt that would go over a limit, or any where one is reached. Raises: LimitReached."""
        now, limit = self._clock(), key.limits.tokens_per_minute
        asked = f", the prompt has {prompt_tokens}" if prompt_tokens else ""
        needed = max(1, prompt_tokens)
        if limit is not None:
            tokens = self._tokens.setdefault(key.name, Window())
            wait = tokens.wait_s(now, max(0, limit - needed))
            if wait or needed > limit:
                raise LimitReached(
                    f"{tokens.sum(now)} tokens were used with the key `{key.name}` in the last minute{asked}",
                    why=f"its limit is {limit}",
                    hint="a shorter prompt" if needed > limit else f"try again in {wait} s",
                    retry_after_s=None if needed > limit else wait)
        for span, used, most, end in self._quotas(key, now):
            if used + needed > most:
                raise LimitReached(f"{used} tokens were used with the key `{key.name}` {span}{asked}",
                                   why=f"its quota is {most}", is_quota=True,
                                   hint=f"it begins anew at {end:%Y-%m-%d %H:%M} UTC" if end else
                                        "ask who gave you the key",
                                   retry_after_s=math.ceil(end.timestamp() - now) if end else None)

    def add(self, key: Key, model: str, used: Usage) -> None:
        """Count what was used."""
        now, num_tokens = self._clock(), used.num_tokens
        place = Place(key.name, int(now) // HOUR_S * HOUR_S, model)
        self._unwritten.setdefault(place, Usage()).add(used)
        self._tokens.setdefault(key.name, Window()).add(now, num_tokens)
        if key.name in self._totals:
            self._active.add(key.name)
            day, month, total = self._totals[key.name]
            self._totals[key.name] = Totals(day + num_tokens, month + num_tokens, total + num_tokens)

    def spent(self, key: Key) -> Totals:
        """Return the tokens of a key of this day, this month and in all."""
        return self._totals_of(key.name, self._clock())

    def stored(self, names: Iterable[str]) -> dict[str, Totals]:
        """Return what the store has of keys; from any thread."""
        return {} if self._usage is None else self._usage.totals(names, self._clock())

    def last_minute(self, key: Key) -> tuple[int, int]:
        """Return the requests and tokens of a key in the last 60 seconds."""
        now = self._clock()
        return tuple(windows[key.name].sum(now) if key.name in windows else 0
                     for windows in (self._requests, self._tokens))

    def take(self) -> Batch:
        """Return what is to be written; `write` it, then `wrote` it, or `give_back` what could not be."""
        batch = Batch(self._unwritten, frozenset(self._active & self._totals.keys()))
        self._unwritten, self._writing, self._active = {}, batch.usage, set()
        return batch

    def write(self, batch: Batch) -> dict[str, Totals]:
        """Write what was taken, from any thread; return fresh totals for `wrote`.

        Raises: as `UsageStore`.
        """
        if self._usage is None:
            return {}
        if batch.usage:
            self._usage.add(batch.usage)
        return self._usage.totals(batch.keys, self._clock())

    def wrote(self, totals: dict[str, Totals]) -> None:
        """Take over the totals of all processes, with what was counted since; forget those of idle keys."""
        self._writing = {}
        now = self._clock()
        if self._usage is not None:
            self._totals = {name: self._with(name, totals[name], now) if name in totals else known
                            for name, known in self._totals.items()
                            if name in totals or name in self._active}

    def give_back(self, batch: Batch) -> None:
        """Keep what could not be written for the next time."""
        self._writing = {}
        self._active |= batch.keys
        for place, used in batch.usage.items():
            self._unwritten.setdefault(place, Usage()).add(used)

    def _quotas(self, key: Key, now: float) -> list[tuple[str, int, int, datetime | None]]:
        """Return (span, used, quota, end) of each quota that the key has."""
        limits = key.limits
        if limits.tokens_per_day is limits.tokens_per_month is limits.tokens_total is None:
            return []
        used = self._totals_of(key.name, now)
        day, month = (datetime.fromtimestamp(one, UTC) for one in day_and_month(now))
        rows = [("today", used.day, limits.tokens_per_day, day + timedelta(days=1)),
                ("this month", used.month, limits.tokens_per_month,
                 (month + timedelta(days=32)).replace(day=1)),
                ("in all", used.total, limits.tokens_total, None)]
        return [row for row in rows if row[2] is not None]

    def _totals_of(self, name: str, now: float) -> Totals:
        self._active.add(name)
        if name not in self._totals:
            found = self._usage.totals([name], now) if self._usage else {}
            self._totals[name] = self._with(name, found.get(name, Totals(0, 0, 0)), now)
        return self._totals[name]

    def _with(self, name: str, known: Totals, now: float) -> Totals:
        """Return totals of the store and what is not in it yet."""
        day, month = day_and_month(now)
        more = [(place.hour, used.num_tokens) for usage in (self._unwritten, self._writing)
                for place, used in usage.items() if place.key == name]
        return Totals(known.day + sum(count for hour, count in more if hour >= day),
                      known.month + sum(count for hour, count in more if hour >= month),
                      known.total + sum(count for _, count in more))
