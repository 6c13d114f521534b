"""Tokenizers, chat templates and text streaming: everything between text and token ids."""

from openhearth.chat.budget import TemplateLimits
from openhearth.chat.export import tokenizer_files
from openhearth.chat.grammar import (
    Grammars,
    GrammarText,
    choice_grammar,
    lark_grammar,
    regex_grammar,
    schema_grammar,
)
from openhearth.chat.infill import Infill, infill_prompt
from openhearth.chat.load import load_tokenizer
from openhearth.chat.pieces import AnswerPiece, ToolCall, WholeAnswer, whole_answer
from openhearth.chat.reading import AnswerReader, Reading, reading_after
from openhearth.chat.render import RenderedChat, render
from openhearth.chat.stops import StopStrings
from openhearth.chat.template import ChatTemplate, load_template
from openhearth.chat.text_stream import TextStream
from openhearth.chat.thinking import Thinking
from openhearth.chat.tokenizer import Marks, Tokenizer

__all__ = [
    "AnswerPiece",
    "AnswerReader",
    "ChatTemplate",
    "GrammarText",
    "Grammars",
    "Infill",
    "Marks",
    "Reading",
    "RenderedChat",
    "StopStrings",
    "TemplateLimits",
    "TextStream",
    "Thinking",
    "Tokenizer",
    "ToolCall",
    "WholeAnswer",
    "choice_grammar",
    "infill_prompt",
    "lark_grammar",
    "load_template",
    "load_tokenizer",
    "reading_after",
    "regex_grammar",
    "render",
    "schema_grammar",
    "tokenizer_files",
    "whole_answer",
]
