"""The application: dialects' routes, health, the web page, and what surrounds them.

Does not: load models, open sockets or handle signals (`running.py`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route as StarletteRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from openhearth.accounts import Keys, Meter, UsageStore
from openhearth.config import Config
from openhearth.server.access import Access, Log
from openhearth.server.accounting import Accounting
from openhearth.server.dialects import DIALECTS, NOT_SERVED, pulling_dialect, responses_dialect
from openhearth.server.errors import Refusal
from openhearth.server.exchange import RECORD, Call, Dialect, Endpoint, Route, send_error
from openhearth.server.metrics import Metrics
from openhearth.server.models import Models
from openhearth.server.openapi import describe_api
from openhearth.server.operating import routes_of
from openhearth.server.page_files import page_routes
from openhearth.server.response_store import ResponseStore


def build_app(models: Models, *, keys: Keys | None = None, usage: UsageStore | None = None,
              shares_cache: bool = False, origins: Sequence[str] = (), config: Config | None = None,
              responses: ResponseStore | None = None, log: Log | None = None) -> ASGIApp:
    """Return the ASGI application; its lifespan starts and stops the engines' threads.

    keys: None serves this machine only, without keys. usage: where what each key uses is written.
    shares_cache: whether keys share cached prefixes. origins: of pages that browsers may let ask, "*" for
    all. config: of the store that `/api/pull` changes, None for the environment's. responses: where those of
    `/v1/responses` are kept, None for memory; closed at the end. log: takes one record per exchange.
    """
    metrics = Metrics(lambda: models.loaded)
    accounting = Accounting(keys, Meter(usage), shares_cache=shares_cache, on_generation=metrics.watch)
    responses = responses or ResponseStore(None)
    kept = (responses_dialect(responses), pulling_dialect(config or Config.from_env()))

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        models.start()
        try:
            async with accounting.running():
                yield
        finally:
            await models.stop()
            responses.close()

    own = Dialect(DIALECTS[0].name, routes_of(accounting, metrics), DIALECTS[0].error)
    dialects = (own, *kept, *DIALECTS)
    description = describe_api(dialects)

    async def describe(call: Call) -> dict[str, Any]:
        return description

    dialects = (*dialects, Dialect(own.name, (Route("GET", "/openapi.json", describe),), own.error))
    routes = [StarletteRoute(route.path, Endpoint(models, dialect, route), methods=[route.method])
              for dialect in dialects for route in dialect.routes]
    routes += page_routes([route.path for route in routes], needs_key=keys is not None)
    app = Starlette(routes=routes, lifespan=lifespan, exception_handlers={HTTPException: _no_route})
    access = Access(app, accounting=accounting, dialect_of=dialect_of, metrics=metrics, log=log,
                    origins=origins)
    if not origins:
        return access
    return CORSMiddleware(access, allow_origins=origins, allow_methods=("GET", "POST", "DELETE"),
                          allow_headers=("*",), expose_headers=("x-request-id", "retry-after"),
                          allow_private_network=True)


def dialect_of(path: str) -> Dialect:
    """Return the dialect whose errors a path has."""
    names = {dialect.name: dialect for dialect in DIALECTS}
    if path.startswith("/v1/messages"):
        return names["anthropic"]
    return names["ollama"] if path.startswith("/api/") else names["openai"]




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
