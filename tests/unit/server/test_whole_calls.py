"""Ollama's clients read whole calls only; they come as soon as they are whole."""

from openhearth.chat import AnswerPiece, ToolCall
from openhearth.server.dialects.ollama import _WholeCalls
from openhearth.server.dialects.tools import arguments_of


def test_a_call_comes_when_another_piece_or_the_end_follows():
    calls = _WholeCalls()
    first = (AnswerPiece("content", "So."), AnswerPiece("call", "weather", 0),
             AnswerPiece("arguments", "{", 0))
    assert calls.add(first, is_last=False) == ("So.", "", ())
    second = (AnswerPiece("arguments", "}", 0), AnswerPiece("call", "now", 1))
    assert calls.add(second, is_last=False) == ("", "", (ToolCall("weather", "{}"),))
    last = (AnswerPiece("arguments", '{"a"', 1),)
    assert calls.add(last, is_last=True) == ("", "", (ToolCall("now", '{"a"'),))


def test_arguments_that_are_no_object_are_kept():
    assert arguments_of(ToolCall("f", '{"a": 1}')) == {"a": 1}
    assert arguments_of(ToolCall("f", '{"a": ')) == {"INVALID_JSON": '{"a": '}
    assert arguments_of(ToolCall("f", "[1]")) == {"INVALID_JSON": "[1]"}
