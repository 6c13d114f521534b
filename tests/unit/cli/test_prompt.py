"""Which argument is the prompt, and what stdin adds to it."""

import io
import os
import sys

import pytest

from openhearth.cli import prompt
from openhearth.errors import UsageError


@pytest.fixture
def stdin(tmp_path, monkeypatch):
    """Put bytes on stdin, as a file does."""

    def put(content: bytes):
        path = tmp_path / "stdin"
        path.write_bytes(content)
        monkeypatch.setattr(sys, "stdin", path.open(encoding="utf-8"))

    put(b"")
    return put


@pytest.mark.parametrize("first,second,expected", [
    ("smollm2", "hi there", ("smollm2", "hi there")),
    ("What is the capital of France?", None, (None, "What is the capital of France?")),
    ("two\nlines", None, (None, "two\nlines")),
    ("smollm2", None, ("smollm2", None)),
    ("hub:a/b@main:c.gguf", None, ("hub:a/b@main:c.gguf", None)),
    ("my model", "hi", ("my model", "hi")),
    (None, None, (None, None)),
])
def test_one_argument_with_spaces_is_a_prompt(first, second, expected):
    assert prompt.split_arguments(first, second) == expected


def test_a_path_with_spaces_that_exists_is_a_model(tmp_path):
    folder = tmp_path / "my model"
    folder.mkdir()
    assert prompt.split_arguments(str(folder), None) == (str(folder), None)


def test_a_very_long_prompt_is_no_path_and_no_error():
    text = "word " * 5000
    assert prompt.split_arguments(text, None) == (None, text)


def test_piped_text_follows_the_argument_after_a_blank_line(stdin):
    stdin(b"first\nsecond\n")
    assert prompt.gather_prompt("Summarise:", is_raw=False) == "Summarise:\n\nfirst\nsecond"


def test_piped_text_alone_is_the_prompt_without_its_last_newline(stdin):
    stdin(b"  hello\n")
    assert prompt.gather_prompt(None, is_raw=False) == "  hello"


def test_a_raw_piped_prompt_stays_byte_for_byte(stdin):
    stdin(b" Once upon\n\n")
    assert prompt.gather_prompt(None, is_raw=True) == " Once upon\n\n"


@pytest.mark.parametrize("argument,piped", [
    ("", b""), ("  ", b""), (None, b"\n"), (None, b""), ("\n", b"\n")])
def test_an_empty_prompt_is_refused(stdin, argument, piped):
    stdin(piped)
    with pytest.raises(UsageError, match="prompt"):
        prompt.gather_prompt(argument, is_raw=False)


def test_bytes_that_are_no_utf8_are_refused_with_the_place(stdin):
    stdin(b"abc\xff")
    with pytest.raises(UsageError, match="at byte 3"):
        prompt.gather_prompt("x", is_raw=False)


def test_more_than_the_limit_is_refused():
    with pytest.raises(UsageError, match=r"larger than 32\.0 MiB"):
        prompt.read_piped(io.BytesIO(bytes(prompt.MAX_STDIN_BYTES + 1)))


def test_files_and_pipes_count_as_piped_and_the_null_device_does_not(tmp_path):
    (tmp_path / "file").write_text("x")
    read_end, write_end = os.pipe()
    with open(tmp_path / "file") as file, open(read_end) as pipe, open(os.devnull) as null:
        assert prompt.is_piped(file) and prompt.is_piped(pipe)
        assert not prompt.is_piped(null)
    os.close(write_end)
    assert not prompt.is_piped(file), "a closed stream"
