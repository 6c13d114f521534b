"""Text for terminals."""

import io

from openhearth.cli.terminal_text import for_stream, printable


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_escape_sequences_cannot_reach_a_terminal():
    assert printable("\x1b]0;title\x07a\x9b2Jb\r\x7f") == "\ufffd]0;title\ufffda\ufffd2Jb\ufffd\ufffd"


def test_ordinary_text_of_any_script_stays():
    text = "a\tb\nZoe \u00e9 \u732b \U0001f469\u200d\U0001f52c \u05d0"
    assert printable(text) == text


def test_a_pipe_gets_the_text_as_it_is():
    assert for_stream("\x1b[1m", io.StringIO()) == "\x1b[1m"
    assert for_stream("\x1b[1m", Terminal()) == "\ufffd[1m"
