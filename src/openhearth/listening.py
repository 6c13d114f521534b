"""Where a server listens, and who can reach it there: known before anything is loaded.

Does not: accept connections, or know HTTP.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
from pathlib import Path

from openhearth.errors import UsageError

GONE_S = 60
"""A client that acknowledges nothing for this long is gone."""


def bind(host: str, port: int) -> socket.socket:
    """Return a socket bound to an address, which does not listen yet. port 0 takes a free one.

    Raises: UsageError when the address cannot be had.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _let_lost_connections_end(bound)
        bound.bind(address)
    except OSError as error:
        raise UsageError(f"`{host}` port {port} cannot be had", why=error.strerror or str(error),
                         hint="hearth serve --port 0 takes a free one") from None
    return bound


def _let_lost_connections_end(bound: socket.socket) -> None:
    """Have the system end connections whose other side is gone or reads no more; accepted ones inherit it."""
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", GONE_S // 2), ("TCP_KEEPINTVL", GONE_S // 6), ("TCP_KEEPCNT", 3),
                        ("TCP_USER_TIMEOUT", GONE_S * 1000)):
        if hasattr(socket, name):
            bound.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def address_of(bound: socket.socket, *, has_tls: bool = False) -> str:
    """Return the address to give to clients."""
    host, port = bound.getsockname()[:2]
    scheme = "https" if has_tls else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


class Tls:
    """TLS 1.2 or newer with a certificate chain and its key, PEM files that are read again when they change.

    context: what sockets are wrapped with; later connections get the newest certificate.
    Raises: UsageError for files that do not fit. Example: ``Tls(Path("chain.pem"), Path("key.pem"))``.
    """

    def __init__(self, certificate: Path, key: Path) -> None:
        self._files = (certificate, key)
        self._seen = self._stamps()
        self.context = self._read()

    def refresh(self) -> None:
        """Take over files that changed. Raises: UsageError when they do not fit; the old ones hold then."""
        stamps = self._stamps()
        if stamps != self._seen:
            self._seen = stamps
            self._read()
            self.context.load_cert_chain(*self._files, password="")

    def _stamps(self) -> tuple[tuple[int, int, int] | None, ...]:
        found = [path.stat() if path.is_file() else None for path in self._files]
        return tuple(one and (one.st_mtime_ns, one.st_size, one.st_ino) for one in found)

    def _read(self) -> ssl.SSLContext:
        for path in self._files:
            if not path.is_file():
                raise UsageError(f"`{path}` is no file", hint="--tls-cert chain.pem --tls-key key.pem")
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_cert_chain(*self._files, password="")
        except (OSError, ssl.SSLError) as error:
            certificate, key = self._files
            raise UsageError(f"`{certificate}` and `{key}` are no certificate and its key", why=str(error),
                             hint="PEM files; the key without a password") from None
        return context


def is_loopback(host: str) -> bool:
    """Return whether a host name or address can only mean this machine."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
