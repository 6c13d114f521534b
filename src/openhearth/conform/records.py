"""What checks and their results are made of.

Does not: speak HTTP (`wire.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from openhearth.conform.wire import Peer

Outcome = Literal["ok", "broken", "not served"]

Check = Callable[["Peer"], None]
"""A check of one promise, named after it. Returns when it holds. Raises: Broken, NotServed."""


class Broken(Exception):
    """The server does something else than its dialect says; the message says what."""


class NotServed(Exception):
    """The server says that it does not have this; the message has its words."""


@dataclass(frozen=True)
class Exchange:
    """One request and what came back; keys are replaced, long bodies are cut.

    Example: ``Exchange("POST /v1/chat/completions", {}, '{"model": "m"}', 200, {}, '{"id": "x"}')``.
    """

    request: str
    request_headers: dict[str, str]
    request_body: str
    status: int
    headers: dict[str, str]
    body: str


@dataclass(frozen=True)
class Result:
    """What became of a check. reason: why it is broken, or the server's words for not serving it.

    exchanges: of a check that is broken. Example: ``Result("openai", "models are listed", "ok", "", ())``.
    """

    dialect: str
    check: str
    outcome: Outcome
    reason: str
    exchanges: tuple[Exchange, ...]


def expect(holds: Any, what: str) -> None:
    """Go on when something holds. Raises: Broken."""
    if not holds:
        raise Broken(what)


def has(value: Any, where: str, **kinds: Any) -> dict[str, Any]:
    """Return an object that has these names with values of these types; None allows null.

    Booleans are no numbers. Raises: Broken, naming the place. Example: ``has(answer, "the answer", id=str)``.
    """
    expect(isinstance(value, dict), f"{where} is {shown(value)}, expected an object")
    for name, kind in kinds.items():
        expect(name in value, f"{where} has no `{name}`")
        kinds_here = kind if isinstance(kind, tuple) else (kind,)
        allowed = tuple(type(None) if one is None else one for one in kinds_here)
        is_right = isinstance(value[name], allowed) and (bool in allowed or not isinstance(value[name], bool))
        expected = " or ".join("null" if one is None else one.__name__ for one in kinds_here)
        expect(is_right, f"`{name}` of {where} is {shown(value[name])}, expected {expected}")
    return value


def one_of(value: Any, where: str, *allowed: Any) -> Any:
    """Return a value that is one of some. Raises: Broken."""
    expect(value in allowed, f"{where} is {shown(value)}, expected {' or '.join(map(repr, allowed))}")
    return value


def shown(value: Any) -> str:
    """Return a value as messages quote it."""
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
