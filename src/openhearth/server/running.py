"""A socket, signals, and the end of a server: what is being answered is answered, then it leaves.

Does not: build the application (`app.py`).
"""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp

from openhearth.errors import HearthError, UsageError

DRAIN_S = 60
"""After SIGTERM or Ctrl-C, answers on their way may go on for this long; a second Ctrl-C ends them."""

_HEADER_BYTES = 32 << 10


def bind(host: str, port: int) -> socket.socket:
    """Return a socket bound to an address, which does not listen yet. port 0 takes a free one.

    Raises: UsageError when the address cannot be had.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        raise UsageError(f"`{host}` port {port} cannot be had", why=error.strerror or str(error),
                         hint="hearth serve --port 0 takes a free one") from None
    return bound


def address_of(bound: socket.socket) -> str:
    """Return the address to give to clients."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Server(uvicorn.Server):
    """A server that ends quietly: a signal begins the end and is not raised again afterwards.

    on_hangup: what SIGHUP does, on the event loop; an error of ours in it is printed, and the server goes on.
    """

    def __init__(self, app: ASGIApp, *, drain_s: float = DRAIN_S, on_ready: Callable[[], None] = lambda: None,
                 on_hangup: Callable[[], Awaitable[None]] | None = None) -> None:
        super().__init__(uvicorn.Config(
            app, http="h11", ws="none", loop="asyncio", lifespan="on", log_config=None, access_log=False,
            server_header=False, proxy_headers=False, timeout_graceful_shutdown=drain_s,
            h11_max_incomplete_event_size=_HEADER_BYTES))
        self._on_ready, self._on_hangup = on_ready, on_hangup
        self._hangups: set[asyncio.Task[None]] = set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, then tell."""
        await super().startup(sockets)
        if self._on_hangup is not None and threading.current_thread() is threading.main_thread():
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._begin_hangup)
        if self.started:
            self._on_ready()

    def _begin_hangup(self) -> None:
        task = asyncio.ensure_future(self._hang_up())
        self._hangups.add(task)
        task.add_done_callback(self._hangups.discard)

    async def _hang_up(self) -> None:
        try:
            await self._on_hangup()
        except HearthError as error:  # the edge of one signal
            print(f"nothing was changed: {error}", file=sys.stderr, flush=True)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Let SIGTERM and SIGINT begin the end while the block runs; in the main thread only."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit)
                  for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
