"""How the answer to a prompt is read: thoughts, content and tool calls out of one stream of text.

Does not: read an answer that nobody said thinks or calls tools; its text is content as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from openhearth.chat.grammar import GrammarText, after_thought
from openhearth.chat.harmony import (
    FINAL,
    MARKS,
    NEXT,
    HarmonyReader,
    harmony_after,
    harmony_grammar,
    speaks_harmony,
)
from openhearth.chat.pieces import AnswerPiece
from openhearth.chat.template import ChatTemplate
from openhearth.chat.thinking import CLOSE, OPEN, Thinking, ThinkingSplit, knows_thinking, thinking_after
from openhearth.chat.tokenizer import Tokenizer
from openhearth.chat.tools.formats import ToolFormat
from openhearth.chat.tools.parsing import CallParser


@dataclass(frozen=True)
class Reading:
    """What to look for in an answer. tools: the schema of each one's arguments; tool_format: None without.

    is_harmony: the answer is messages in channels; thinking then says where it begins (`harmony_after`).
    is_middle: the answer fills a gap, and ends with the tokens that end one.
    Example: ``Reading(Thinking.INSIDE).begin().push("hm</think>4")`` gives "hm" as reasoning, "4" as content.
    """

    thinking: Thinking = Thinking.NEVER
    tool_format: ToolFormat | None = None
    tools: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    is_harmony: bool = False
    is_middle: bool = False

    @property
    def marks(self) -> tuple[str, ...]:
        """Texts that may be control tokens, and are to be read all the same."""
        if self.is_harmony:
            return MARKS
        thinking = () if self.thinking is Thinking.NEVER else (OPEN, CLOSE)
        return (*thinking, *(self.tool_format.marks if self.tool_format is not None else ()))

    @property
    def closing(self) -> str:
        """The text that closes a thought; in harmony the answer comes next where there are no tools."""
        if self.is_harmony:
            return "".join(NEXT if self.tool_format is not None else (*NEXT, *FINAL))
        return f"\n{CLOSE}\n\n"

    def stop_token_ids(self, tokenizer: Tokenizer) -> frozenset[int]:
        """Return the tokens that end the answer."""
        if not self.is_middle:
            return tokenizer.stop_token_ids
        return tokenizer.stop_token_ids | tokenizer.infill.end_ids

    def begin(self) -> AnswerReader | HarmonyReader:
        """Return the reader of one answer."""
        if self.is_harmony:
            return HarmonyReader(self.thinking, has_tools=self.tool_format is not None)
        return AnswerReader(self)

    def after_thinking(self, grammar: GrammarText, tokenizer: Tokenizer, *,
                       is_call: bool = False) -> GrammarText:
        """Return a grammar that leaves thoughts alone and begins where the answer does.

        is_call: the grammar is that of `call_grammar`; otherwise it is that of the content.
        """
        if self.is_harmony:
            return harmony_grammar(grammar, tokenizer, self.thinking, is_call=is_call)
        if self.thinking is Thinking.NEVER:
            return grammar
        return after_thought(grammar, OPEN, CLOSE, tokenizer, is_inside=self.thinking is Thinking.INSIDE)


def reading_after(template: ChatTemplate | None, tokenizer: Tokenizer, prompt: str) -> Reading:
    """Return how the answer to a rendered prompt is read, without tools."""
    if speaks_harmony(template, tokenizer):
        return Reading(harmony_after(prompt), is_harmony=True)
    return Reading(thinking_after(prompt, is_known=knows_thinking(template, tokenizer)))


class AnswerReader:
    """Reads one answer while it is written."""

    def __init__(self, reading: Reading) -> None:
        self._split = ThinkingSplit(reading.thinking)
        self._calls = None
        if reading.tool_format is not None:
            self._calls = CallParser(reading.tool_format, reading.tools)

    @property
    def is_thinking(self) -> bool:
        """Whether what came last belongs to a thought."""
        return self._split.is_thinking

    def push(self, text: str) -> list[AnswerPiece]:
        """Return what can be shown."""
        return self._parsed(self._split.push(text))

    def finish(self) -> list[AnswerPiece]:
        """Return what was held back at the end of the text."""
        rest = self._parsed(self._split.finish())
        return rest + (self._calls.finish() if self._calls is not None else [])

    def _parsed(self, pieces: list[AnswerPiece]) -> list[AnswerPiece]:
        if self._calls is None:
            return pieces
        return [parsed for piece in pieces for parsed in
                (self._calls.push(piece.text) if piece.kind == "content" else [piece])]
