"""One HTTP exchange: a JSON body in, a JSON document or a stream out, an error in the dialect's own shape.

A client that leaves ends its exchange: the handler is cancelled wherever it waits, and what it opened in the
engine is closed. JSON goes out in ASCII: clients that cut a stream at every character that Unicode calls a
line break (U+0085, U+2028) would otherwise cut inside a document.

Does not: know a dialect's fields, or check keys (`access.py`).
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.types import Message, Receive, Scope, Send

from openhearth.accounts import Usage
from openhearth.errors import HearthError
from openhearth.server.accounting import Tally
from openhearth.server.engine_thread import log_traceback
from openhearth.server.errors import Refusal, retry_headers, status_and_code
from openhearth.server.fields import Field
from openhearth.server.generation import Generation, Job
from openhearth.server.models import Models, Offer
from openhearth.server.served import Limits, Served

RECORD = "openhearth.record"
"""Name of an exchange's `Record` in its ASGI scope."""


@dataclass
class Record:
    """What the access log says of an exchange, and what it has used.

    route: path of the route that serves it, "" for none. noted: counts and names, never text of a prompt or
    answer.
    """

    request_id: str
    tally: Tally
    route: str = ""
    noted: dict[str, Any] = field(default_factory=dict)

    @property
    def key_name(self) -> str | None:
        """The name of the key that the request came with."""
        return None if self.tally.key is None else self.tally.key.name

    @property
    def is_admin(self) -> bool:
        """Whether the caller may see and change what is everyone's; without keys all on this machine may."""
        return self.tally.is_admin


@dataclass
class Call:
    """What a handler is given. body: the JSON object, {} for a GET. path: named parts of the path.

    query: of the address; a name that is there twice has its last value. load_s: how long the request waited
    for its model to be loaded.
    """

    models: Models
    body: dict[str, Any]
    path: Mapping[str, str]
    record: Record
    stack: AsyncExitStack
    query: Mapping[str, str] = field(default_factory=dict)
    load_s: float = 0.0

    @property
    def offer(self) -> Offer:
        """The model that the request names, the first when it names none. Raises: Refusal with status 404."""
        name = self.body.get("model")
        return self.models.find(name) if isinstance(name, str) else self.models.first

    @property
    def served(self) -> Served:
        """That model, loaded; always so where the route needs it. Raises: Refusal with status 404 or 503."""
        if self.offer.served is None:
            raise Refusal(f"`{self.offer.name}` is not loaded", status=503, code="model_not_loaded")
        return self.offer.served

    async def lease(self) -> None:
        """Have the model loaded for as long as this exchange lives. Raises: as `Models.lease`."""
        started, is_loaded = time.perf_counter(), self.offer.state == "loaded"
        await self.models.lease(self.offer.name, self.stack)
        self.load_s = 0.0 if is_loaded else time.perf_counter() - started

    async def open(self, job: Job) -> Generation:
        """Put a job into the engine's line, for as long as this exchange lives.

        Raises: as `Served.open`, LimitReached.
        """
        tally, model = self.record.tally, self._billed(job.request.adapter)
        tally.begin(model, len(job.request.prompt_token_ids))
        generation = await self.served.open(job, self.stack)
        tally.watch(model, generation)
        return generation

    def count_prompt(self, adapter: str | None, prompt_tokens: int) -> None:
        """Count a prompt that is read without an answer, before it is. adapter: as the engine calls it.

        Raises: LimitReached.
        """
        model = self._billed(adapter)
        self.record.tally.begin(model, prompt_tokens)
        self.record.tally.count(model, Usage(prompt_tokens=prompt_tokens))

    def _billed(self, adapter: str | None) -> str:
        """Return the name that usage is written under; the engine's adapters carry a hash behind theirs."""
        return self.served.name if adapter is None else adapter.partition("@")[0]

    def require_admin(self) -> None:
        """Refuse what only admins may do. Raises: Refusal."""
        if not self.record.is_admin:
            raise Refusal(f"the key `{self.record.key_name}` is no admin's", status=403, code="admin_only",
                          hint="hearth keys create NAME --role admin")

    def note(self, **noted: Any) -> None:
        """Add to what the access log says."""
        self.record.noted.update(noted)

    def note_generation(self, *generations: Generation) -> None:
        """Add counts of what was generated to the access log."""
        first = [generation.first_s - generation.submitted_s for generation in generations
                 if generation.first_s is not None]
        self.note(prompt_tokens=sum(generation.prompt_tokens for generation in generations),
                  cached_tokens=sum(generation.cached_tokens for generation in generations),
                  completion_tokens=sum(generation.completion_tokens for generation in generations),
                  first_token_s=round(min(first), 4) if first else None)

    @property
    def cache_salt(self) -> str:
        """What keeps this caller's cached prefixes apart from those of other keys."""
        return self.record.tally.cache_salt


@dataclass(frozen=True)
class Stream:
    """An answer in pieces. on_error: what a client reads when it fails on the way."""

    media_type: str
    chunks: AsyncIterator[bytes]
    on_error: Callable[[HearthError], bytes]


Handler = Callable[[Call], Awaitable["Stream | Any"]]


@dataclass(frozen=True)
class Route:
    """One path of a dialect. fields: of the JSON object that it is sent; without any it is sent none.

    query: fields of the address. needs_model: the model that the object names is loaded before the handler
    runs.
    Example: ``Route("POST", "/v1/chat/completions", chat, CHAT_FIELDS)``.
    """

    method: str
    path: str
    handler: Handler
    fields: tuple[Field, ...] = ()
    query: tuple[Field, ...] = ()
    needs_model: bool = True


@dataclass(frozen=True)
class Dialect:
    """A family of paths with one shape of errors. error: (error, status, code, request id) -> body."""

    name: str
    routes: tuple[Route, ...]
    error: Callable[[HearthError, int, str | None, str], dict[str, Any]]


class Endpoint:
    """The ASGI application behind one route."""

    def __init__(self, models: Models, dialect: Dialect, route: Route) -> None:
        self._models, self._dialect, self._route = models, dialect, route

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one exchange."""
        record: Record = scope[RECORD]
        record.route = self._route.path
        try:
            async with AsyncExitStack() as stack:
                body = {}
                if self._route.fields:
                    body = await read_json(Request(scope, receive), self._models.limits)
                call = Call(self._models, body, scope.get("path_params", {}), record, stack,
                            query=Request(scope).query_params)
                await _until_gone(receive, self._reply(call, send))
        except ClientDisconnect:
            record.noted["client_left"] = True
        except HearthError as error:
            await send_error(send, self._dialect, error, record)
        except Exception as error:  # the edge of one exchange
            log_traceback(error)
            await send_error(send, self._dialect, HearthError(
                f"this is a mistake in hearth: {type(error).__name__}"), record)

    async def _reply(self, call: Call, send: Send) -> None:
        if self._route.fields and self._route.needs_model:
            await call.lease()
        result = await self._route.handler(call)
        if not isinstance(result, Stream):
            await send_json(send, 200, result)
            return
        headers = [(b"content-type", result.media_type.encode()), (b"cache-control", b"no-cache"),
                   (b"x-accel-buffering", b"no")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        try:
            async for chunk in result.chunks:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        except Exception as error:  # as above; the status is sent, so the stream itself must say it
            if not isinstance(error, HearthError):
                log_traceback(error)
                error = HearthError(f"this is a mistake in hearth: {type(error).__name__}")
            call.note(error=error.what)
            await send({"type": "http.response.body", "body": result.on_error(error), "more_body": True})
        await send({"type": "http.response.body", "body": b""})


def to_json(value: Any) -> bytes:
    """Return a JSON document in ASCII. Raises: ValueError for numbers that JSON does not have."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).encode()


async def send_json(send: Send, status: int, value: Any, headers: list[tuple[bytes, bytes]] = ()) -> None:
    """Send a whole answer."""
    body = to_json(value)
    await send({"type": "http.response.start", "status": status,
                "headers": [(b"content-type", b"application/json"),
                            (b"content-length", str(len(body)).encode()), *headers]})
    await send({"type": "http.response.body", "body": body})


async def send_error(send: Send, dialect: Dialect, error: HearthError, record: Record) -> None:
    """Send an error as its dialect writes it."""
    status, code = status_and_code(error)
    record.noted["error"] = code or "bad_request"
    headers = retry_headers(error, status)
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if status in (408, 413):
        headers.append((b"connection", b"close"))
    await send_json(send, status, dialect.error(error, status, code, record.request_id), headers)


async def read_json(request: Request, limits: Limits) -> dict[str, Any]:
    """Return the JSON object that a request has for a body.

    Raises: Refusal (413 too large, 408 too slow, 400 no JSON object), ClientDisconnect.
    """
    if request.headers.get("content-encoding", "identity") != "identity":
        raise Refusal("the body is compressed", status=415, why="expected plain JSON")
    parts, size = [], 0
    try:
        async with asyncio.timeout(limits.body_s):
            async for part in request.stream():
                size += len(part)
                if size > limits.max_body_bytes:
                    raise Refusal(f"the body has more than {limits.max_body_bytes} bytes", status=413,
                                  code="request_too_large")
                parts.append(part)
    except TimeoutError:
        raise Refusal(f"the body was not there after {limits.body_s:g} s", status=408) from None
    try:
        value = json.loads(b"".join(parts).decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)[:200]
        raise Refusal("the body is no JSON document in UTF-8", code="invalid_json", why=reason) from None
    if not isinstance(value, dict):
        raise Refusal("the body is no JSON object", code="invalid_json", why=f"got {type(value).__name__}")
    return value


def _no_constant(name: str) -> Any:
    raise ValueError(f"`{name}` is no number in JSON")


async def _until_gone(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Do the work; end it when the client leaves. Raises: ClientDisconnect, and what the work raises."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        task.result()
    finally:
        for one in (task, gone):
            one.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    message: Message = {"type": ""}
    while message["type"] != "http.disconnect":
        message = await receive()
