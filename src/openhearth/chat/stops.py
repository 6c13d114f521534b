"""Stop strings in streamed text: text that may be the beginning of one is held back.

Does not: stop the engine; the caller cancels the request when `push` says so.
"""

from __future__ import annotations

from collections.abc import Iterable

from openhearth.errors import UsageError


class StopStrings:
    """Cuts a stream of text in front of the first stop string.

    The stop that begins first wins, and the cut does not depend on how the text arrives in pieces.
    Example: ``StopStrings(["END"]).push("a EN") == ("a ", False)``.
    """

    def __init__(self, stops: Iterable[str]) -> None:
        """Raises: UsageError for an empty stop string."""
        self._stops = tuple(dict.fromkeys(stops))
        if any(not isinstance(stop, str) or not stop for stop in self._stops):
            raise UsageError(
                "a stop string is empty",
                why="an empty string would stop before the first token",
                hint="leave it out",
            )
        self._held = ""
        self._met: str | None = None

    @property
    def is_stopped(self) -> bool:
        """True once a stop string was met; everything after it is dropped."""
        return self._met is not None

    @property
    def met(self) -> str | None:
        """The stop string that was met; of two that begin at the same place, the one given first."""
        return self._met

    def push(self, text: str) -> tuple[str, bool]:
        """Return the text that can be shown, and True when a stop string was met."""
        if self.is_stopped:
            return "", True
        held = self._held + text
        first = self._find(held)
        keep = _first_open(held, self._stops)
        if first is not None and first[0] <= keep:
            # A longer stop that began earlier could still be completed; only then is there no verdict.
            self._held, self._met = "", first[1]
            return held[: first[0]], True
        self._held = held[keep:]
        return held[:keep], False

    def finish(self) -> str:
        """Return what was held back at the end of the text, cut at a stop string."""
        held, self._held = self._held, ""
        first = self._find(held)
        if first is not None:
            self._met = first[1]
            return held[: first[0]]
        return held

    def _find(self, text: str) -> tuple[int, str] | None:
        """Return where the first stop string begins, and which it is."""
        found = [(at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        return min(found, key=lambda pair: pair[0], default=None)


def _first_open(text: str, stops: tuple[str, ...]) -> int:
    """Return where the earliest unfinished stop string begins; len(text) when there is none."""
    longest = max(map(len, stops), default=0)
    for start in range(max(0, len(text) - longest + 1), len(text)):
        if any(len(stop) > len(text) - start and stop.startswith(text[start:]) for stop in stops):
            return start
    return len(text)
