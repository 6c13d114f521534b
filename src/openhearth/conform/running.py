"""Runs checks against a server, one after the other.

Does not: print.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from openhearth.conform.dialects import DIALECTS
from openhearth.conform.records import Broken, Check, NotServed, Result
from openhearth.conform.wire import Peer
from openhearth.errors import NetworkError, Offline, UsageError
from openhearth.hub.http import is_loopback


def conform(url: str, *, dialects: Sequence[str] = tuple(DIALECTS), model: str | None = None,
            key: str | None = None, timeout_s: float = 120.0, is_offline: bool = False) -> Iterator[Result]:
    """Yield what became of each check. model: None takes the first that the server lists.

    is_offline: reach this machine only. Raises: NetworkError when the server cannot be reached, or lists no
    model; Offline, UsageError.
    """
    for dialect in dialects:
        if dialect not in DIALECTS:
            raise UsageError(f"`{dialect}` is no dialect that is checked",
                             why=f"expected {', '.join(DIALECTS)}")
    if not url.startswith(("http://", "https://")):
        raise UsageError(f"`{url}` is no address", why="expected one that begins with http:// or https://",
                         hint="hearth conform http://127.0.0.1:8000")
    if is_offline and not is_loopback(url):
        raise Offline(f"`{url}` is not this machine", why="HEARTH_OFFLINE is set",
                      hint="HEARTH_OFFLINE=0 hearth conform ...")
    peer = Peer(url.rstrip("/").removesuffix("/v1"), model or "", key, timeout_s)
    try:
        if model is None:
            peer.model = _first_model(peer)
        for dialect in dialects:
            for check in DIALECTS[dialect]:
                yield run_check(dialect, check, peer)
    finally:
        peer.close()


def run_check(dialect: str, check: Check, peer: Peer) -> Result:
    """Return what became of one check; whatever an answer has for a shape, it is the check's result."""
    peer.exchanges.clear()
    name = (check.__doc__ or "").splitlines()[0].removesuffix(".")
    try:
        check(peer)
    except NotServed as reason:
        return Result(dialect, name, "not served", str(reason), ())
    except Broken as reason:
        return Result(dialect, name, "broken", str(reason), tuple(peer.exchanges[-1:]))
    except NetworkError as error:
        return Result(dialect, name, "broken", f"{error.what}: {error.why}", tuple(peer.exchanges[-1:]))
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:  # of what was not expected
        reason = f"the answer has another shape: {type(error).__name__}: {error}"
        return Result(dialect, name, "broken", reason, tuple(peer.exchanges[-1:]))
    return Result(dialect, name, "ok", "", ())


def _first_model(peer: Peer) -> str:
    """Return the first model that the server lists, in either dialect. Raises: NetworkError."""
    for path, names, field in (("/v1/models", "data", "id"), ("/api/tags", "models", "name")):
        reply = peer.get(path)
        try:
            return reply.json()[names][0][field]
        except (Broken, KeyError, TypeError, IndexError):
            continue
    raise NetworkError(f"`{peer.url}` lists no model", why=f"its last answer has status {reply.status}",
                       hint="--model NAME, and --key where it wants one")
