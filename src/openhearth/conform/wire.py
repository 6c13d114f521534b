"""HTTP to the server under test: every exchange is kept, nothing is retried, redirected or remembered.

Does not: judge what comes back, beyond reading it as JSON, events or lines.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import urllib3

from openhearth.conform.records import Broken, Exchange, NotServed, expect, shown
from openhearth.errors import NetworkError

_KEPT = 4000
_SECRET = ("authorization", "x-api-key")
_ABSENT = (404, 405, 501)
_UNDONE = (400, 404, 405, 422, 501)


@dataclass(frozen=True)
class Reply:
    """What came back. Example: ``Reply(200, {"content-type": "application/json"}, b"{}").json() == {}``."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def media_type(self) -> str:
        """Without parameters."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    def json(self) -> Any:
        """Return the body as JSON. Raises: Broken."""
        return _json(self.body, "the body")

    def ok(self) -> Any:
        """Return the JSON of an answer with status 200. Raises: Broken."""
        expect(self.status == 200, f"status {self.status}, expected 200: {shown(self.text[:300])}")
        expect(self.media_type == "application/json", f"content type `{self.media_type}`, expected JSON")
        return self.json()

    @property
    def text(self) -> str:
        """The body; what is no UTF-8 is replaced."""
        return self.body.decode("utf-8", "replace")

    def events(self) -> list[tuple[str | None, str]]:
        """Return (event, data) of server-sent events. Raises: Broken for what is no such stream.

        Source: https://html.spec.whatwg.org/multipage/server-sent-events.html, section 9.2.6.
        """
        expect(self.status == 200, f"status {self.status}, expected 200: {shown(self.text[:300])}")
        expect(self.media_type == "text/event-stream", f"content type `{self.media_type}` of a stream")
        try:
            lines = self.body.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n").split("\n")
        except UnicodeDecodeError as error:
            raise Broken(f"the stream is no UTF-8: {error}") from None
        found: list[tuple[str | None, str]] = []
        name, data = None, []
        for line in lines[:-1]:
            kind, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if line == "":
                if data:
                    found.append((name, "\n".join(data)))
                name, data = None, []
            elif kind == "event":
                name = value
            elif kind == "data":
                data.append(value)
            else:
                expect(kind in ("", "id", "retry"), f"the stream has the line {shown(line)}")
        is_whole = not data and name is None and lines[-1] == ""
        expect(is_whole, "the stream ends within an event: no blank line after the last one")
        return found

    def lines(self) -> list[dict[str, Any]]:
        """Return the objects of a stream of JSON lines. Raises: Broken."""
        expect(self.status == 200, f"status {self.status}, expected 200: {shown(self.text[:300])}")
        expect(self.media_type == "application/x-ndjson", f"content type `{self.media_type}` of a stream")
        expect(self.body.endswith(b"\n"), "the last line has no end")
        return [_json(line, "a line") for line in self.body.split(b"\n")[:-1]]


@dataclass
class Peer:
    """The server under test. model: the name that requests take. exchanges: of the present check.

    Example: ``Peer("http://127.0.0.1:8000", "smollm2", None, 120.0).get("/v1/models")``.
    """

    url: str
    model: str
    key: str | None
    timeout_s: float
    exchanges: list[Exchange] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._pool = urllib3.PoolManager(retries=False, timeout=urllib3.Timeout(self.timeout_s))

    def get(self, path: str, **headers: str) -> Reply:
        """Ask for a path. Raises: NetworkError."""
        return self._ask("GET", path, None, headers)

    def delete(self, path: str) -> Reply:
        """Have what is at a path deleted. Raises: NetworkError."""
        return self._ask("DELETE", path, None, {})

    def post(self, path: str, body: Any = None, /, *, headers: Mapping[str, str] | None = None,
             **fields: Any) -> Reply:
        """Send an object; `model` is added where fields lack it. body: bytes or an object sent as it is.

        Raises: NetworkError.
        """
        if body is None:
            body = {"model": self.model, **fields}
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self._ask("POST", path, content, dict(headers or {}))

    def served(self, reply: Reply) -> Reply:
        """Return the reply of a path that the server has. Raises: NotServed when it says that it has none."""
        if reply.status in _ABSENT:
            raise NotServed(f"{reply.status}: {message_of(reply)}")
        return reply

    def done(self, reply: Reply) -> Reply:
        """Return the reply to a request for something optional. Raises: NotServed where it is refused."""
        if reply.status in _UNDONE:
            raise NotServed(f"{reply.status}: {message_of(reply)}")
        return reply

    def close(self) -> None:
        """Drop connections."""
        self._pool.clear()

    def _ask(self, method: str, path: str, content: bytes | None, more: Mapping[str, str]) -> Reply:
        # A connection for each request: one that is kept may be closed while the next request is on its way.
        headers = {"accept": "*/*", "connection": "close", "user-agent": "hearth-conform"}
        if content is not None:
            headers["content-type"] = "application/json"
        if self.key is not None:
            headers["authorization"] = f"Bearer {self.key}"
        headers.update(more)
        try:
            reply = self._pool.request(method, self.url + path, body=content, redirect=False,
                                       headers={name: value for name, value in headers.items() if value})
        except (urllib3.exceptions.HTTPError, UnicodeError) as error:
            self._keep(method, path, headers, content, Reply(0, {}, str(error).encode()))
            raise NetworkError(f"`{method} {path}` at {urlsplit(self.url).netloc} had no answer",
                               why=str(error), hint="is the server running? --timeout waits longer") from None
        answered = {name.lower(): value for name, value in reply.headers.items()}
        found = Reply(reply.status, answered, reply.data)
        self._keep(method, path, headers, content, found)
        return found

    def _keep(self, method: str, path: str, headers: Mapping[str, str], content: bytes | None,
              reply: Reply) -> None:
        def safe(values: Mapping[str, str]) -> dict[str, str]:
            return {name: "(a key)" if name.lower() in _SECRET else self._without_key(value)
                    for name, value in values.items()}

        self.exchanges.append(Exchange(
            f"{method} {path}", safe(headers), self._without_key(_cut(content or b"")), reply.status,
            safe(reply.headers), self._without_key(_cut(reply.body))))

    def _without_key(self, text: str) -> str:
        return text.replace(self.key, "(a key)") if self.key else text


def message_of(reply: Reply) -> str:
    """Return a server's words for an error, in any of the dialects, as one line."""
    try:
        value = json.loads(reply.body)
    except ValueError:
        value = reply.text
    for name in ("error", "message", "detail"):
        if isinstance(value, dict) and value.get(name):
            value = value[name]
    text = " ".join((value if isinstance(value, str) else json.dumps(value)).split())
    return text if len(text) <= 160 else f"{text[:157]}..."


def data_of(event: tuple[str | None, str]) -> dict[str, Any]:
    """Return the object that an event carries. Raises: Broken."""
    value = _json(event[1].encode(), "an event")
    expect(isinstance(value, dict), f"an event carries {shown(value)}, expected an object")
    return value


def _json(content: bytes, where: str) -> Any:
    try:
        return json.loads(content.decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise Broken(f"{where} is no JSON in UTF-8 ({error}): {shown(content[:200])}") from None


def _no_constant(name: str) -> Any:
    raise ValueError(f"`{name}` is no number in JSON")


def _cut(content: bytes) -> str:
    text = content.decode("utf-8", "backslashreplace")
    if len(text) <= _KEPT:
        return text
    return f"{text[:_KEPT // 2]}\n... {len(text) - _KEPT} characters left out ...\n{text[-_KEPT // 2:]}"
