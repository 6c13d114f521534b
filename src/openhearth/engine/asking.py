"""Requests through an engine, as many at once as it can advance, each result as soon as it is there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from openhearth.engine.engine import Engine
from openhearth.engine.records import Completion, Request
from openhearth.engine.tracking import Collector

Key = TypeVar("Key")


def complete(engine: Engine,
             requests: Iterable[tuple[Key, Request]]) -> Iterator[tuple[Key, list[Completion]] | None]:
    """Yield each request's key and its n completions, in the order in which requests end.

    requests is read as room appears: never more completions are open than the engine advances together,
    but for one request's own n. None is yielded after every step, so that the reader can stop between
    any two; closing the generator cancels what is open. Other callers must not step the engine meanwhile.
    Raises: as `Engine.submit`, and the error that a request ended with.
    """
    room = engine.settings.max_num_sequences
    source = iter(requests)
    open_requests: dict[int, tuple[Key, Collector]] = {}
    num_open, has_more = 0, True
    try:
        while has_more or open_requests:
            while has_more and num_open < room:
                following = next(source, None)
                if following is None:
                    has_more = False
                    break
                key, request = following
                request_id = engine.submit(request)
                collector = Collector()
                collector.open(request_id, request.n, engine.weights_version)
                open_requests[request_id] = key, collector
                num_open += request.n
            for event in engine.step() if open_requests else ():
                if event.request_id in open_requests:
                    key, collector = open_requests[event.request_id]
                    collector.add(event)
                    if collector.is_complete:
                        del open_requests[event.request_id]
                        found = collector.completions(event.request_id, 0)
                        num_open -= len(found)
                        yield key, found
            yield None
    finally:
        for request_id in open_requests:
            engine.cancel(request_id)
