"""The models that a server offers: which are loaded, who uses them, and what is unloaded for the next one.

A request leases its model for as long as its exchange lives. A model that is not loaded is loaded by a worker
thread while others are answered; where memory does not hold it, idle models are unloaded, the longest unused
one first, never one that is leased. Everything here runs on the event loop; only loading and ending a model's
thread do not.

Does not: know wire formats, plan memory (`planning.py`) or read adapters.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from openhearth.errors import HearthError, UsageError
from openhearth.hub import StoredModel
from openhearth.kernels import freed
from openhearth.local import LocalModel
from openhearth.models.adapter_files import StoredAdapter
from openhearth.server.engine_thread import log_traceback
from openhearth.server.errors import Refusal
from openhearth.server.planning import LoadPlan
from openhearth.server.served import Limits, Served, plain_name, unknown_model

State = Literal["stored", "loading", "loaded", "unloading"]


class Offer:
    """One model that a server offers, loaded or not.

    load: gives the model as planned; called in a worker thread. adapters: by the names that requests take.
    served: the loaded model. keep_alive_s: how long it stays without use, None as long as memory allows.
    Example: ``Offer("smollm2", plan, lambda: load(plan.stored, weights=plan.weights))``.
    """

    def __init__(self, name: str, plan: LoadPlan, load: Callable[[], LocalModel], *,
                 adapters: Mapping[str, StoredAdapter] | None = None) -> None:
        self.name, self.plan, self.load = name, plan, load
        self.adapters = dict(adapters or {})
        self.state: State = "stored"
        self.served: Served | None = None
        self.offered_at = datetime.now(UTC)
        self.used_s = 0.0
        self.keep_alive_s: float | None = None
        self._leases: set[int] = set()
        self._loading: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._retired: list[tuple[int, list[str]]] = []

    @property
    def names(self) -> tuple[str, ...]:
        """The model's name, then those of its adapters."""
        return (self.name, *self.adapters)

    @property
    def num_leases(self) -> int:
        """Requests that use the model, or wait for it."""
        return len(self._leases)

    @property
    def expires_at(self) -> datetime | None:
        """When it will be unloaded if nobody uses it; None when only the next model's need unloads it."""
        if self.keep_alive_s is None:
            return None
        since_s = 0.0 if self._leases else time.monotonic() - self.used_s
        return datetime.now(UTC) + timedelta(seconds=max(0.0, self.keep_alive_s - since_s))

    def open(self, limits: Limits) -> Served:
        """Return the model, loaded in the calling thread; the offer does not change. Raises: as `load`."""
        return Served(self.load(), self.name, adapters=self.adapters, limits=limits)


class Models:
    """All offers of a server. memory_bytes: what loaded models may hold together.

    plan: makes the offer of a model that is brought while the server runs; called in a worker thread.
    Raises: UsageError when two offers or adapters have one name.
    Example: ``served = await Models(offers, memory_bytes=8 << 30).lease("smollm2", stack)``.
    """

    def __init__(self, offers: Sequence[Offer], *, memory_bytes: int, limits: Limits = Limits(),
                 plan: Callable[[StoredModel], Offer] | None = None) -> None:
        self.offers, self.memory_bytes, self.limits = tuple(offers), memory_bytes, limits
        self._plan = plan
        self._check_names({offer.name: offer.adapters for offer in self.offers})
        self._one_load, self._one_change = asyncio.Lock(), asyncio.Lock()
        self._freed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._numbers = itertools.count()

    @property
    def first(self) -> Offer:
        """The model of requests that name none."""
        return self.offers[0]

    @property
    def names(self) -> tuple[str, ...]:
        """Every name that requests may take."""
        return tuple(name for offer in self.offers for name in offer.names)

    @property
    def loaded(self) -> tuple[Served, ...]:
        """The models that are loaded now."""
        return tuple(offer.served for offer in self.offers if offer.served is not None)

    @property
    def held_bytes(self) -> int:
        """What models hold that are loaded or on their way in or out, as planned."""
        return sum(offer.plan.num_bytes for offer in self.offers if offer.state != "stored")

    def find(self, name: str) -> Offer:
        """Return the offer that a name means, as `plain_name` reads it. Raises: Refusal with status 404."""
        short = plain_name(name)
        for offer in self.offers:
            if short in offer.names:
                return offer
        raise unknown_model(name, self.names)

    def open_first(self) -> Served:
        """Load the first model in the calling thread, before `start`. Raises: as its `load`."""
        self.first.served, self.first.state = self.first.open(self.limits), "loaded"
        return self.first.served

    def start(self) -> None:
        """Start the threads of what was loaded before; called once, on the event loop."""
        for served in self.loaded:
            served.thread.start()

    async def stop(self) -> None:
        """End what is loaded; returns when every thread has ended."""
        for offer in self.offers:
            _cancel(offer)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for served in self.loaded:
            if served.thread.is_alive:
                await asyncio.to_thread(served.thread.stop)

    async def lease(self, name: str, stack: AsyncExitStack) -> Served:
        """Return a name's model, loaded, and keep it so until the stack ends.

        Raises: Refusal with status 404, or 503 when it is not loaded in time; what loading it raises.
        """
        offer = self.find(name)
        number = next(self._numbers)
        offer._leases.add(number)
        offer.keep_alive_s = None
        _cancel(offer)
        stack.callback(self._release, offer, number)
        try:
            async with asyncio.timeout(self.limits.load_s):
                while offer.state != "loaded":
                    if offer._loading is None:
                        offer._loading = self._spawn(self._load(offer))
                    await asyncio.shield(offer._loading)
        except TimeoutError:
            raise Refusal(f"`{offer.name}` was not loaded after {self.limits.load_s:g} s", status=503,
                          code="model_not_loaded", why=self._why_not(offer),
                          hint="try again in a moment") from None
        return offer.served

    async def add(self, stored: StoredModel) -> None:
        """Offer a model from now on; one that is offered already stays as it is.

        Raises: UsageError when its name is taken, by another version of it too; what planning it raises.
        """
        offer = await asyncio.to_thread(self._plan, stored)
        async with self._one_change:
            for other in self.offers:
                if other.plan.stored.weights_sha256 == stored.weights_sha256 and offer.name == other.name:
                    return
            if offer.name in self.names:
                raise UsageError(f"`{offer.name}` is served already, and is not the same model",
                                 hint="the pulled one is served when the server is started again")
            self.offers = (*self.offers, offer)

    async def change_adapters(self, adapters: Mapping[str, Mapping[str, StoredAdapter]]) -> None:
        """Serve these adapters from now on, by the offer's name; requests on their way keep theirs.

        Raises: UsageError when two have one name, or one does not fit (offers before it have changed then).
        """
        self._check_names(adapters)
        async with self._one_change:
            for offer in self.offers:
                await self._change(offer, dict(adapters.get(offer.name, {})))

    async def _change(self, offer: Offer, wanted: dict[str, StoredAdapter]) -> None:
        number = next(self._numbers)
        offer._leases.add(number)  # it is not unloaded meanwhile
        try:
            if offer.state == "loaded":
                old = await offer.served.change_adapters(wanted)
                if old:
                    offer._retired.append((next(self._numbers), old))
            offer.adapters = wanted
        finally:
            offer._leases.discard(number)
            self._freed.set()
            self._tidy(offer)

    def _check_names(self, adapters: Mapping[str, Mapping[str, StoredAdapter]]) -> None:
        names = [name for offer in self.offers for name in (offer.name, *adapters.get(offer.name, {}))]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise UsageError(f"two models or adapters are named `{twice[0]}`",
                             why="requests choose by the name", hint="--name, or another NAME=")

    def _why_not(self, offer: Offer) -> str:
        busy = [other.name for other in self.offers if other is not offer and other.num_leases]
        if offer.state == "loading":
            return "it is still being read"
        return f"others use {', '.join(busy)}, and memory does not hold both" if busy else "others come first"

    def _release(self, offer: Offer, number: int) -> None:
        """End a lease: its model may now be unloaded, by the next one or by its timer."""
        offer._leases.discard(number)
        offer.used_s = time.monotonic()
        self._freed.set()
        self._tidy(offer)
        if not offer._leases and offer.keep_alive_s is not None:
            _cancel(offer)
            offer._timer = asyncio.get_running_loop().call_later(
                offer.keep_alive_s, lambda: self._spawn(self._expire(offer)))

    def _tidy(self, offer: Offer) -> None:
        """Have adapters forgotten that no lease began with."""
        if offer._retired and offer.state == "loaded":
            oldest = min(offer._leases, default=next(self._numbers))
            done = [name for number, names in offer._retired if number < oldest for name in names]
            offer._retired = [entry for entry in offer._retired if entry[0] >= oldest]
            if done:
                self._spawn(offer.served.forget(done))

    async def _expire(self, offer: Offer) -> None:
        if offer.state == "loaded" and not offer._leases:
            await self._unload(offer)

    async def _load(self, offer: Offer) -> None:
        """Load an offer when there is room; one at a time, so that the account of memory is true."""
        try:
            async with self._one_load:
                await self._make_room(offer)
                offer.state, adapters = "loading", offer.adapters
                try:
                    served = await asyncio.to_thread(offer.open, self.limits)
                    served.thread.start()
                    while offer.adapters is not adapters:  # they changed while it was read
                        adapters = offer.adapters
                        await served.forget(await served.change_adapters(adapters))
                except BaseException:
                    offer.state = "stored"
                    raise
                offer.served, offer.state, offer.used_s = served, "loaded", time.monotonic()
        finally:
            offer._loading = None
            self._freed.set()

    async def _make_room(self, offer: Offer) -> None:
        """Unload idle models until the offer fits. Raises: Refusal when nobody waits for it any more."""
        while offer.state == "unloading" or self.held_bytes + offer.plan.num_bytes > self.memory_bytes:
            idle = [other for other in self.offers if other.state == "loaded" and not other._leases]
            if idle and offer.state != "unloading":
                await self._unload(min(idle, key=lambda other: other.used_s))
                continue
            self._freed.clear()
            await self._freed.wait()
            if not offer._leases:
                raise Refusal(f"nobody waits for `{offer.name}` any more", status=503)

    async def _unload(self, offer: Offer) -> None:
        """Take a loaded model that nobody leases out of memory."""
        assert offer.state == "loaded" and not offer._leases
        _cancel(offer)
        served, offer.served = offer.served, None
        offer.state, offer._retired = "unloading", []
        await asyncio.to_thread(served.thread.stop)
        del served
        await asyncio.to_thread(_give_back)
        offer.state = "stored"
        self._freed.set()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Begin work that goes on when whoever began it leaves."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._note_end)
        return task

    def _note_end(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, HearthError):
            log_traceback(error)


def _cancel(offer: Offer) -> None:
    if offer._timer is not None:
        offer._timer.cancel()
        offer._timer = None


def _give_back() -> None:
    gc.collect()
    freed.give_back()
