"""What each exchange uses, charged to its key while it goes on, and keys that end while they are used.

An exchange has a `Tally`. Twice a second what all of them used since is charged and written, so that a kill
loses less than a second of it; limits see every token at once, since they collect before they judge. A stream
whose key was revoked or expired ends at the same beat.

Does not: know HTTP, or decide limits (`accounts/metering.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING

from openhearth.accounts import Key, Keys, Meter, Usage
from openhearth.errors import HearthError
from openhearth.server.errors import Refusal

if TYPE_CHECKING:
    from openhearth.server.generation import Generation

BEAT_S = 0.4
"""Between two writings; with the time of one it stays below a second."""


class Tally:
    """What one exchange has used. key: None where the server has no keys; nothing is charged then.

    cache_salt: of its requests, so that keys do not share cached prefixes.
    """

    def __init__(self, key: Key | None, accounting: Accounting, *, is_admin: bool) -> None:
        self.key, self.is_admin = key, is_admin
        self.cache_salt = "" if key is None or accounting.shares_cache else f"key {key.name}"
        self._accounting = accounting
        self._model: str | None = None
        self._watched: list[tuple[str, Generation, Usage]] = []

    def begin(self, model: str, prompt_tokens: int) -> None:
        """Say which model is asked; refuse a prompt for which there is no room. Raises: LimitReached."""
        if self._model is None:
            self._model = model
            self.count(model, Usage(requests=1))
        if self.key is not None:
            self._accounting.collect(self.key.name)
            self._accounting.meter.check_prompt(self.key, prompt_tokens)

    def watch(self, model: str, generation: Generation) -> None:
        """Charge a generation's tokens, from its prompt on, as they come."""
        self._watched.append((model, generation, Usage()))
        self._accounting.on_generation(model, generation)
        self.collect()

    def count(self, model: str, used: Usage) -> None:
        """Charge what is no generation's."""
        if self.key is not None:
            self._accounting.meter.add(self.key, model, used)

    def collect(self) -> None:
        """Charge what came since the last time."""
        for model, generation, seen in self._watched:
            now = Usage(0, 0, generation.prompt_tokens, generation.cached_tokens,
                        generation.completion_tokens)
            more = Usage(0, 0, now.prompt_tokens - seen.prompt_tokens,
                         now.cached_tokens - seen.cached_tokens,
                         now.completion_tokens - seen.completion_tokens)
            if more != Usage():
                seen.add(more)
                self.count(model, more)

    def end(self, *, has_failed: bool) -> None:
        """Charge the rest; an exchange that never came to a model is charged to none."""
        if self._model is None:
            self.count("", Usage(requests=1))
        if has_failed:
            self.count(self._model or "", Usage(errors=1))
        self.collect()

    def fail(self, error: HearthError) -> None:
        """End the generations of the exchange with an error."""
        for _, generation, _ in self._watched:
            generation.fail(error)


class Accounting:
    """Keys, limits and usage of a server that runs.

    keys: None lets everyone on this machine in. meter: counts per key and knows where to write.
    shares_cache: whether keys share cached prefixes. on_generation: told of each one that begins.
    """

    def __init__(self, keys: Keys | None, meter: Meter, *, shares_cache: bool = False,
                 on_generation: Callable[[str, Generation], None] = lambda model, generation: None) -> None:
        self.keys, self.meter, self.shares_cache = keys, meter, shares_cache
        self.on_generation = on_generation
        self._open: set[Tally] = set()
        self._problems: dict[str, str] = {}

    def open(self, key: Key | None, *, asks: bool) -> Tally:
        """Return the tally of an exchange. asks: whether it may use a model, so that limits hold for it.

        Raises: LimitReached.
        """
        tally = Tally(key, self, is_admin=self.keys is None or (key is not None and key.role == "admin"))
        if asks and key is not None:
            self.collect(key.name)
            try:
                self.meter.admit(key)
            except HearthError:
                tally.end(has_failed=True)
                raise
            self._open.add(tally)
        return tally

    def close(self, tally: Tally, *, has_failed: bool) -> None:
        """End an exchange that may have used a model."""
        if tally in self._open:
            self._open.discard(tally)
            tally.end(has_failed=has_failed)

    def collect(self, name: str | None = None) -> None:
        """Charge what open exchanges used since the last time: of one key, or of all."""
        for tally in self._open:
            if name is None or tally.key.name == name:
                tally.collect()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Write usage and end exchanges of revoked keys while the block runs; write the rest at its end."""
        if self.keys is None:
            yield
            return
        task = asyncio.ensure_future(self._beat())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await self.write()

    async def write(self) -> None:
        """Write what was used so far. A failure is told on stderr, once, and nothing is lost by it."""
        self.collect()
        batch = self.meter.take()
        work = asyncio.ensure_future(asyncio.to_thread(self.meter.write, batch))
        try:
            totals = await asyncio.shield(work)
        except asyncio.CancelledError:
            await asyncio.wait((work,))
            if work.exception():
                self.meter.give_back(batch)
            else:
                self.meter.wrote(work.result())
            raise
        except Exception as error:  # the edge of one beat: the next one tries again
            self.meter.give_back(batch)
            self._tell("usage is not written", error)
        else:
            self.meter.wrote(totals)
            self._tell("usage is not written", None)

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(BEAT_S)
            self._end_revoked()
            await self.write()

    def _end_revoked(self) -> None:
        self.keys.refresh()
        self._tell("changed keys are not taken", self.keys.problem)
        for tally in self._open:
            if not self.keys.still_good(tally.key):
                tally.fail(Refusal(f"the key `{tally.key.name}` ended", status=401, code="invalid_api_key"))

    def _tell(self, what: str, problem: Exception | None) -> None:
        text = "" if problem is None else f"{what}: {problem}"
        if text and self._problems.get(what) != text:
            print(text, file=sys.stderr, flush=True)
        self._problems[what] = text
