"""What an answer is made of besides words: thoughts and tool calls, as pieces of a stream.

Does not: find them in text (`thinking.py`, `tools/parsing.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class AnswerPiece:
    """A part of an answer that can be shown.

    kind: "reasoning" and "content" bring text; "call" begins tool call number `call`, its text is the name of
    the function; "arguments" goes on with the JSON of its arguments.
    Example: ``AnswerPiece("call", "weather", 0)``.
    """

    kind: Literal["reasoning", "content", "call", "arguments"]
    text: str
    call: int = 0


@dataclass(frozen=True)
class ToolCall:
    """A function to call. arguments: JSON text, as the model wrote it. Example: ``ToolCall("now", "{}")``."""

    name: str
    arguments: str


@dataclass(frozen=True)
class WholeAnswer:
    """All pieces of an answer together."""

    reasoning: str
    content: str
    calls: tuple[ToolCall, ...]


def whole_answer(pieces: Iterable[AnswerPiece]) -> WholeAnswer:
    """Return what pieces are together, so that a streamed answer and a whole one cannot differ."""
    texts: dict[str, list[str]] = {"reasoning": [], "content": []}
    calls: list[tuple[str, list[str]]] = []
    for piece in pieces:
        if piece.kind == "call":
            calls.append((piece.text, []))
        elif piece.kind == "arguments":
            calls[piece.call][1].append(piece.text)
        else:
            texts[piece.kind].append(piece.text)
    return WholeAnswer("".join(texts["reasoning"]), "".join(texts["content"]),
                       tuple(ToolCall(name, "".join(arguments)) for name, arguments in calls))


def find_first(text: str, marks: Sequence[str]) -> tuple[int, str | None]:
    """Return where the first of some marks begins, and which; else where one may have begun at the end.

    Of marks that begin at the same place, the one given first.
    """
    found = [(at, mark) for mark in marks if (at := text.find(mark)) >= 0]
    whole = min(found, key=lambda pair: pair[0], default=(len(text), None))
    longest = max(map(len, marks), default=0)
    for start in range(max(0, len(text) - longest + 1), whole[0]):
        if any(len(mark) > len(text) - start and mark.startswith(text[start:]) for mark in marks):
            return start, None
    return whole
