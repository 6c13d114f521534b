"""Who may ask, and the log of who asked what: around everything that the server serves.

Without keys a server answers this machine only: requests that a web page of elsewhere had a browser send
(another `Origin`, or a `Host` that a name server was made to point here) are refused.

Does not: log prompts, answers, query strings or keys; count or limit (`accounting.py`).
"""

from __future__ import annotations

import json
import re
import secrets
import sys
import time
from collections.abc import Callable, Collection
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from openhearth.accounts import Key
from openhearth.errors import HearthError
from openhearth.listening import is_loopback
from openhearth.server.accounting import Accounting, Tally
from openhearth.server.errors import Refusal
from openhearth.server.exchange import RECORD, Dialect, Record, send_error
from openhearth.server.metrics import Metrics
from openhearth.server.page_files import PAGE_PREFIX

OPEN_PATHS = frozenset({"/", "/health", "/ready"})
"""Served without a key, as the files of the page are: they say nothing about models or use."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9_.-]{1,128}")

Log = Callable[[dict[str, Any]], None]


class Access:
    """Checks, request ids and the access log.

    accounting: has the keys; without them everyone on this machine is let in, and pages of these origins.
    dialect_of: path -> whose errors it has. log: takes one record per exchange, None for no log.
    """

    def __init__(self, app: ASGIApp, *, accounting: Accounting, dialect_of: Callable[[str], Dialect],
                 metrics: Metrics, log: Log | None, origins: Collection[str] = ()) -> None:
        self._app, self._accounting, self._dialect_of = app, accounting, dialect_of
        self._metrics, self._log, self._origins = metrics, log, frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one exchange, or pass on what is none."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers, accounting = Headers(scope=scope), self._accounting
        given = headers.get("x-request-id", "")
        record = Record(given if _REQUEST_ID.fullmatch(given) else f"req_{secrets.token_hex(12)}",
                        Tally(None, accounting, is_admin=False))
        scope[RECORD] = record
        started, status = time.perf_counter(), 0

        async def send_noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                request_id = record.request_id.encode()
                message["headers"] = [*message["headers"], (b"x-request-id", request_id),
                                      (b"request-id", request_id)]
            await send(message)

        try:
            try:
                key = self._check(scope["path"], headers)
                record.tally = Tally(key, accounting, is_admin=False)
                record.tally = accounting.open(key, asks=scope["method"] == "POST")
            except HearthError as error:
                await send_error(send_noting, self._dialect_of(scope["path"]), error, record)
            else:
                await self._app(scope, receive, send_noting)
        finally:
            accounting.close(record.tally, has_failed=status >= 400 or "error" in record.noted)
            seconds = time.perf_counter() - started
            self._metrics.count_request(scope["method"], record.route, status, seconds)
            if self._log is not None:
                self._log({"time": datetime.now(UTC).isoformat(timespec="milliseconds"),
                           "request_id": record.request_id, "client": (scope.get("client") or ("",))[0],
                           "key": record.key_name, "method": scope["method"], "path": scope["path"][:200],
                           "status": status, "seconds": round(seconds, 4), **record.noted})

    def _check(self, path: str, headers: Headers) -> Key | None:
        """Return the key of a request, None where none is needed. Raises: Refusal."""
        keys = self._accounting.keys
        if keys is None:
            _check_is_local(headers, self._origins)
            return None
        if path in OPEN_PATHS or path.startswith(PAGE_PREFIX):
            return None
        scheme, _, given = headers.get("authorization", "").partition(" ")
        given = given.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        key = keys.find(given) if given else None
        if key is None:
            raise Refusal("this server does not know that key" if given else "this server wants a key",
                          status=401, code="invalid_api_key",
                          hint="Authorization: Bearer KEY, or x-api-key: KEY")
        return key


def log_line(record: dict[str, Any]) -> None:
    """Write a record as one line of JSON to stderr."""
    print(json.dumps({name: value for name, value in record.items() if value is not None}),
          file=sys.stderr, flush=True)


def _check_is_local(headers: Headers, origins: Collection[str]) -> None:
    for name, value in (("Host", f"//{headers.get('host', '')}"), ("Origin", headers.get("origin"))):
        if value is None or value in origins:
            continue
        try:
            host = urlsplit(value).hostname or ""
        except ValueError:
            host = ""
        if not is_loopback(host):
            raise Refusal(f"{name} is `{value.removeprefix('//')[:120]}`", status=403, code="foreign_origin",
                          why="a server without keys answers this machine only",
                          hint="hearth serve --keys, or --cors ORIGIN for a page of yours")
