"""Who may ask, and the log of who asked what: around everything that the server serves.

Without keys a server answers this machine only: requests that a web page of elsewhere had a browser send
(another `Origin`, or a `Host` that a name server was made to point here) are refused.

Does not: log prompts, answers, query strings or keys; limit rates.
"""

from __future__ import annotations

import ipaddress
import json
import re
import secrets
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from openhearth.server.errors import Refusal
from openhearth.server.exchange import RECORD, Dialect, Record, send_error
from openhearth.server.keys import Keys
from openhearth.server.page_files import PAGE_PREFIX

OPEN_PATHS = frozenset({"/", "/health", "/ready"})
"""Served without a key, as the files of the page are: they say nothing about models or use."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9_.-]{1,128}")

Log = Callable[[dict[str, Any]], None]


class Access:
    """Checks, request ids and the access log.

    keys: None lets everyone on this machine in. dialect_of: path -> whose errors it has. log: takes one
    record per exchange, None for no log.
    """

    def __init__(self, app: ASGIApp, *, keys: Keys | None, dialect_of: Callable[[str], Dialect],
                 log: Log | None) -> None:
        self._app, self._keys, self._dialect_of, self._log = app, keys, dialect_of, log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one exchange, or pass on what is none."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        record = Record(given if _REQUEST_ID.fullmatch(given) else f"req_{secrets.token_hex(12)}")
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
                self._check(scope["path"], headers, record)
            except Refusal as error:
                await send_error(send_noting, self._dialect_of(scope["path"]), error, record)
            else:
                await self._app(scope, receive, send_noting)
        finally:
            if self._log is not None:
                self._log({"time": datetime.now(UTC).isoformat(timespec="milliseconds"),
                           "request_id": record.request_id, "client": (scope.get("client") or ("",))[0],
                           "key": record.key_name, "method": scope["method"], "path": scope["path"][:200],
                           "status": status, "seconds": round(time.perf_counter() - started, 4),
                           **record.noted})

    def _check(self, path: str, headers: Headers, record: Record) -> None:
        """Raises: Refusal for a request that may not be served."""
        if self._keys is None:
            _check_is_local(headers)
        elif path not in OPEN_PATHS and not path.startswith(PAGE_PREFIX):
            scheme, _, key = headers.get("authorization", "").partition(" ")
            key = key.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
            record.key_name = self._keys.find(key) if key else None
            if record.key_name is None:
                raise Refusal("this server does not know that key" if key else "this server wants a key",
                              status=401, code="invalid_api_key",
                              hint="Authorization: Bearer KEY, or x-api-key: KEY")


def log_line(record: dict[str, Any]) -> None:
    """Write a record as one line of JSON to stderr."""
    print(json.dumps({name: value for name, value in record.items() if value is not None}),
          file=sys.stderr, flush=True)


def is_loopback(host: str) -> bool:
    """Return whether a host name or address can only mean this machine."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _check_is_local(headers: Headers) -> None:
    for name, value in (("Host", f"//{headers.get('host', '')}"), ("Origin", headers.get("origin"))):
        if value is None:
            continue
        try:
            host = urlsplit(value).hostname or ""
        except ValueError:
            host = ""
        if not is_loopback(host):
            raise Refusal(f"{name} is `{value.removeprefix('//')[:120]}`", status=403, code="foreign_origin",
                          why="a server without keys answers this machine only",
                          hint="hearth serve --api-key-file KEYS")
