"""Bounded JSON."""

import json

import pytest

from openhearth.errors import BadFile, ModelNotFound
from openhearth.formats.json_files import MAX_DEPTH, MAX_VALUES, read_json, read_json_object


@pytest.fixture
def file(tmp_path):
    def write(raw):
        path = tmp_path / "some.json"
        path.write_bytes(raw)
        return path
    return write


@pytest.mark.parametrize("value", [{"a": [1, 2.5, None, True, "\u00e9\U0001f600"]}, [], "text", 0,
                                   {"a": {"b": {}}}])
def test_values_are_those_that_were_written(file, value):
    assert read_json(file(json.dumps(value).encode()), 1000) == value
    assert read_json(file(json.dumps(value, ensure_ascii=False, indent=2).encode()), 1000) == value


@pytest.mark.parametrize("raw,message", [
    (b'{"a": 1, "a": 2}', "names the key `a` twice"),
    (b'{"x": [{"deep": 1, "deep": 2}]}', "names the key `deep` twice"),
    (b'{"a": ', "Expecting value at line 1 column"),
    (b"\xff\xfe{}", "not valid UTF-8"),
    (b"\xef\xbb\xbf{}", "cannot be read"),
    (b'"\\ud800"', "not valid UTF-8"),
    (b"9" * 5000, "too many digits"),
    (b"[" * 100_000 + b"]" * 100_000, "nested deeper"),
    (b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1), "nested deeper"),
    (b"[" + b"0," * MAX_VALUES + b"0]", f"the limit is {MAX_VALUES}"),
    (b"", "empty: 0 bytes"),
])
def test_damaged_json_is_refused_with_the_reason(file, raw, message):
    with pytest.raises(BadFile, match=message) as caught:
        read_json(file(raw), 1 << 30)
    assert "some.json" in caught.value.what


def test_the_deepest_allowed_nesting_and_surrogate_pairs_are_read(file):
    assert read_json(file(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH), 1000) is not None
    assert read_json(file(b'"\\ud83d\\ude00"'), 1000) == "\U0001f600"


def test_a_file_over_the_size_limit_is_refused_before_it_is_read(file):
    with pytest.raises(BadFile, match=r"has 2\.0 KiB, the limit is 1\.0 KiB"):
        read_json(file(b" " * 2048), 1024)


def test_another_value_than_an_object_is_refused_where_an_object_is_expected(file):
    with pytest.raises(BadFile, match="holds a JSON list"):
        read_json_object(file(b"[]"), 1000)


def test_a_missing_file_is_not_found(tmp_path):
    with pytest.raises(ModelNotFound):
        read_json(tmp_path / "none.json", 1000)
