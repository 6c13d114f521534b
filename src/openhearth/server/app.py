"""The application: dialects' routes, health, the web page, and what surrounds them.

Does not: load models, open sockets or handle signals (`running.py`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route as StarletteRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from openhearth.server.access import Access, Log
from openhearth.server.dialects import DIALECTS, NOT_SERVED
from openhearth.server.errors import Refusal
from openhearth.server.exchange import RECORD, Call, Dialect, Endpoint, Route, send_error
from openhearth.server.keys import Keys
from openhearth.server.page_files import page_routes
from openhearth.server.served import Served


def build_app(served: Served, *, keys: Keys | None = None, log: Log | None = None) -> ASGIApp:
    """Return the ASGI application; its lifespan starts and stops the engine's thread.

    keys: None serves this machine only, without keys. log: takes one record per exchange.
    """
    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        served.thread.start()
        try:
            yield
        finally:
            served.thread.stop()

    own = Dialect(DIALECTS[0].name, (Route("GET", "/health", _health), Route("GET", "/ready", _ready)),
                  DIALECTS[0].error)
    routes = [StarletteRoute(route.path, Endpoint(served, dialect, route), methods=[route.method])
              for dialect in (own, *DIALECTS) for route in dialect.routes]
    routes += page_routes([route.path for route in routes], needs_key=keys is not None)
    app = Starlette(routes=routes, lifespan=lifespan, exception_handlers={HTTPException: _no_route})
    return Access(app, keys=keys, dialect_of=dialect_of, log=log)


def dialect_of(path: str) -> Dialect:
    """Return the dialect whose errors a path has."""
    names = {dialect.name: dialect for dialect in DIALECTS}
    if path.startswith("/v1/messages"):
        return names["anthropic"]
    return names["ollama"] if path.startswith("/api/") else names["openai"]


async def _health(call: Call) -> dict[str, str]:
    if not call.served.thread.is_alive:
        raise Refusal("the engine has stopped", status=503, code="not_healthy", hint="start the server again")
    return {"status": "ok"}


async def _ready(call: Call) -> dict[str, str]:
    await _health(call)
    waiting, most = call.served.engine.scheduler.num_waiting, call.served.limits.max_waiting
    if waiting >= most:
        raise Refusal(f"{waiting} completions are waiting", status=503, code="not_ready",
                      why=f"this server lets {most} wait")
    return {"status": "ready"}


async def _no_route(request: Request, error: HTTPException) -> Response:
    path = request.url.path
    if error.status_code == 405:
        refusal = Refusal(f"`{request.method} {path[:120]}` is not served", status=405,
                          why=f"this path takes {(error.headers or {}).get('Allow', 'another method')}")
    else:
        refusal = Refusal(f"`{path[:120]}` is not served", status=error.status_code, code="unknown_path",
                          why=NOT_SERVED.get(path, ""), hint="docs/serve.md lists every path")

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        await send_error(send, dialect_of(path), refusal, scope[RECORD])

    return answer
