"""`/api/pull`: a model brought into the store of the machine that serves, for who may change it.

The way is that of `hearth pull`: sources, hashes and resuming are its own. A client that leaves ends the
transfer; what arrived is kept, and the next pull goes on from there.

What it brought is offered to requests at once. Does not: take a path of this machine.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any

from openhearth.config import Config
from openhearth.errors import HearthError
from openhearth.hub import Progress, StoredModel, parse_ref, pull
from openhearth.server.dialects.ollama import OLLAMA
from openhearth.server.errors import Refusal, sentence
from openhearth.server.exchange import Call, Dialect, Route, Stream, to_json
from openhearth.server.fields import Field, flag, read_fields, refused, text
from openhearth.server.models import Models
from openhearth.server.served import plain_name

_PHASES = {"download": "pulling {}", "wait": "waiting for another process that pulls {}",
           "verify": "verifying sha256 digest of {}", "unpack": "unpacking {}"}

FIELDS = (
    Field("model", "what `hearth pull` takes, but no path: `smollm2`, `owner/name`, `hf.co/owner/name`, "
          "`https://...`; `:latest` may follow", text),
    Field("name", "the older name of `model`", text),
    Field("stream", "lines of JSON as bytes arrive; on unless `false`", flag),
    refused("insecure", "an address says `http` or `https` itself", False),
)


class _Abandoned(HearthError):
    """The client left; the transfer puts down what it has."""


class Pulling:
    """The handler over one store."""

    def __init__(self, config: Config) -> None:
        self._config = config

    async def pull(self, call: Call) -> Stream | dict[str, Any]:
        """`POST /api/pull`."""
        call.require_admin()
        values = read_fields(FIELDS, call.body)
        name = values.get("model", values.get("name"))
        if name is None:
            raise Refusal("`model` is missing", field="model", code="missing_field")
        ref = plain_name(name)
        if ref.startswith(("/", ".", "~")) or parse_ref(ref).kind == "path":
            raise Refusal(f"`{name[:120]}` is a path", field="model", code="invalid_value",
                          why="models are pulled from sources, not from this machine's folders")
        call.note(model=ref[:200])
        if values.get("stream", True):
            return Stream("application/x-ndjson", self._lines(ref, call.models), _stream_error)
        async for _ in self._lines(ref, call.models):
            pass
        return {"status": "success"}

    async def _lines(self, ref: str, models: Models) -> AsyncIterator[bytes]:
        """Yield a transfer's state; it ends when nobody listens. Raises: as `hub.pull`, `Models.add`."""
        loop = asyncio.get_running_loop()
        states: asyncio.Queue[Progress | None] = asyncio.Queue()
        abandoned = threading.Event()

        def on_progress(progress: Progress) -> None:
            if abandoned.is_set():
                raise _Abandoned("the client left")
            loop.call_soon_threadsafe(states.put_nowait, progress)

        def work() -> StoredModel:
            return pull(ref, self._config, on_progress, does_refresh=True)

        yield _line(status="pulling manifest")
        task = asyncio.ensure_future(asyncio.to_thread(work))
        task.add_done_callback(lambda done: (done.cancelled() or done.exception(), states.put_nowait(None)))
        try:
            while (state := await states.get()) is not None:
                counts = {"completed": state.done_bytes}
                if state.total_bytes is not None:
                    counts["total"] = state.total_bytes
                yield _line(status=_PHASES[state.phase].format(state.path), digest=state.path, **counts)
            stored = task.result()
        finally:
            abandoned.set()
        yield _line(status="writing manifest")
        await models.add(stored)
        yield _line(status="success")


def _line(**record: Any) -> bytes:
    return to_json(record) + b"\n"


def _stream_error(error: HearthError) -> bytes:
    return _line(error=sentence(error))


def pulling_dialect(config: Config) -> Dialect:
    """Return the path over the store of a configuration."""
    return Dialect("ollama", (
        Route("POST", "/api/pull", Pulling(config).pull, FIELDS, needs_model=False),), OLLAMA.error)
