"""Tool calls: the formats that models write them in, parsed while streaming, and as grammars."""

from openhearth.chat.tools.formats import FORMATS, ToolFormat, find_format, plain_names
from openhearth.chat.tools.grammar import call_grammar
from openhearth.chat.tools.parsing import CallParser

__all__ = ["FORMATS", "CallParser", "ToolFormat", "call_grammar", "find_format", "plain_names"]
