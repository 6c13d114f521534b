"""What an answer is in the Responses API: items, and the events that tell how they are written.

A thought, what is said, and each call are an item of their own, in the order of the answer.

Does not: say how a response begins and ends (`responses.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from openhearth.chat import AnswerPiece, Tokenizer
from openhearth.chat.tools import ToolFormat
from openhearth.engine import TokenEvent
from openhearth.server.dialects.response_items import Item, new_id, output_text, reasoning_text
from openhearth.server.dialects.tokens import token_bytes, token_records
from openhearth.server.dialects.tools import call_id
from openhearth.server.generation import Part

Step = tuple[str, dict[str, Any]]
"""A kind of event without `response.`, and its fields."""


class OutputStream:
    """Turns the parts of an answer into events. items: those that are whole.

    tokenizer: None where no log-probabilities are wanted. Those of what is said begin with its first word;
    those of thoughts and calls have no place in this format.
    """

    def __init__(self, form: ToolFormat | None, tokenizer: Tokenizer | None) -> None:
        self.items: list[Item] = []
        self._form, self._tokenizer = form, tokenizer
        self._kind = ""  # of the pieces that the open item takes
        self._head: Item = {}
        self._texts: list[str] = []
        self._logprobs: list[dict[str, Any]] = []
        self._drawn: list[TokenEvent] = []

    def add(self, part: Part) -> Iterator[Step]:
        """Yield the events of a part; an item begins with its first piece."""
        self._drawn += part.events
        for piece in part.pieces:
            if piece.kind not in (self._kind, "arguments"):
                yield from self._end("completed")
                yield from self._begin(piece)
            if piece.kind != "call":
                yield self._delta(piece.text)

    def finish(self, status: str) -> Iterator[Step]:
        """Yield the end of the last item, with the response's status; of nothing, an empty message."""
        if not self._kind:
            yield from self._begin(AnswerPiece("content", ""))
        if self._kind == "content" and self._drawn and self._tokenizer is not None:
            yield self._delta("")
        yield from self._end(status)

    def _begin(self, piece: AnswerPiece) -> Iterator[Step]:
        self._texts, self._logprobs = [], []
        if piece.kind == "call":
            self._kind = "arguments"
            self._head = {"type": "function_call", "id": new_id("function_call"),
                          "call_id": call_id(self._form), "name": piece.text}
        elif piece.kind == "reasoning":
            self._kind = "reasoning"
            self._head = {"type": "reasoning", "id": new_id("reasoning"), "summary": []}
        else:
            self._kind = "content"
            self._head = {"type": "message", "id": new_id("message"), "role": "assistant"}
        empty = self._item("in_progress")
        if self._kind == "arguments":
            yield "output_item.added", {"output_index": len(self.items), "item": empty}
            return
        yield "output_item.added", {"output_index": len(self.items), "item": {**empty, "content": []}}
        yield "content_part.added", {**self._place(), "part": empty["content"][0]}

    def _delta(self, text: str) -> Step:
        drawn, self._drawn = self._drawn, []
        fields = {**self._place(), "delta": text}
        if self._kind == "content":
            fields["logprobs"] = []
            if self._tokenizer is not None:
                drawn = drawn if self._texts else _tokens_of(self._tokenizer, drawn, text)
                fields["logprobs"] = token_records(self._tokenizer, drawn)
        self._texts.append(text)
        self._logprobs += fields.get("logprobs", [])
        return f"{self._event}.delta", fields

    def _end(self, status: str) -> Iterator[Step]:
        """Yield the end of the open item, if there is one."""
        if not self._kind:
            return
        item, place, text = self._item(status), self._place(), "".join(self._texts)
        if self._kind == "arguments":
            yield f"{self._event}.done", {**place, "arguments": text}
        else:
            logprobs = {"logprobs": self._logprobs} if self._kind == "content" else {}
            yield f"{self._event}.done", {**place, "text": text, **logprobs}
            yield "content_part.done", {**place, "part": item["content"][0]}
        yield "output_item.done", {"output_index": place["output_index"], "item": item}
        self.items.append(item)
        self._kind = ""

    @property
    def _event(self) -> str:
        return {"content": "output_text", "reasoning": "reasoning_text",
                "arguments": "function_call_arguments"}[self._kind]

    def _place(self) -> dict[str, Any]:
        part = {} if self._kind == "arguments" else {"content_index": 0}
        return {"item_id": self._head["id"], "output_index": len(self.items), **part}

    def _item(self, status: str) -> Item:
        """Return the open item as it is so far."""
        text, item = "".join(self._texts), {**self._head, "status": status}
        if self._kind == "arguments":
            return {**item, "arguments": text}
        part = output_text(text, [*self._logprobs]) if self._kind == "content" else reasoning_text(text)
        return {**item, "content": [part]}


def _tokens_of(tokenizer: Tokenizer, drawn: Sequence[TokenEvent], text: str) -> Sequence[TokenEvent]:
    """Return the last tokens that make up a text: those before it closed a thought or a call."""
    num_missing, first = len(text.encode("utf-8", "replace")), len(drawn)
    while first and num_missing > 0:
        first -= 1
        num_missing -= len(token_bytes(tokenizer, drawn[first].token_id))
    return drawn[first:]
