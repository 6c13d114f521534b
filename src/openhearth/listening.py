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


def load_tls(certificate: Path, key: Path) -> ssl.SSLContext:
    """Return what a server needs to speak TLS 1.2 or newer. Raises: UsageError for files that do not fit."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    for path in (certificate, key):
        if not path.is_file():
            raise UsageError(f"`{path}` is no file", hint="--tls-cert fullchain.pem --tls-key privkey.pem")
    try:
        context.load_cert_chain(certificate, key, password="")
    except (OSError, ssl.SSLError) as error:
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
