"""Points in time as people write them: a span such as `30d`, or a date."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from openhearth.errors import UsageError

_SPAN = re.compile(r"(?P<count>\d{1,6})(?P<unit>[mhdw])")
_UNIT_S = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def read_time(flag: str, text: str, *, now: float, sign: int) -> int:
    """Return seconds since 1970 of `90m`, `12h`, `30d` or `4w` from now, or of a date or time in UTC.

    sign: 1 for spans that lie ahead, -1 for those that have passed. Raises: UsageError.
    """
    span = _SPAN.fullmatch(text)
    try:
        if span:
            return int(now) + sign * int(span["count"]) * _UNIT_S[span["unit"]]
        found = datetime.fromisoformat(text)
        return int((found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp())
    except (ValueError, OverflowError):
        raise UsageError(f"{flag} is `{text}`", why="expected a span or a date",
                         hint=f"{flag} 30d, or {flag} 2027-01-31") from None


def show_time(seconds: int | None) -> str:
    """Return a time in UTC, "" for None."""
    return "" if seconds is None else f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M}"
