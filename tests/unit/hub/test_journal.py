"""The journal of a partial file: sets of ranges, torn writes, power cuts."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openhearth.hub.journal import Identity, Journal, Ranges, read_journal

spans = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20)).map(lambda s: (s[0], s[0] + s[1])),
                 max_size=30)


@settings(max_examples=300, deadline=None)
@given(spans)
def test_ranges_are_a_set_of_bytes(added):
    ranges, expected = Ranges(), set()
    for start, end in added:
        ranges.add(start, end)
        expected |= set(range(start, end))
        assert {byte for low, high in ranges.spans for byte in range(low, high)} == expected
        assert ranges.num_bytes == len(expected)
    assert {b for low, high in ranges.missing(80) for b in range(low, high)} == set(range(80)) - expected
    assert all(end < start for (_, end), (start, _) in zip(ranges.spans, ranges.spans[1:], strict=False))
    assert ranges.prefix == next(i for i in range(81) if i not in expected)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "x.journal"


def written(path, marks, identity=Identity(100, "a" * 64)):
    (path.parent / "x").write_bytes(bytes(100))
    journal = Journal(path, identity, Ranges())
    for start, end in marks:
        journal.mark(start, end)
    return journal


def test_marks_are_read_back(path):
    written(path, [(0, 10), (50, 60), (10, 20)]).close()
    identity, ranges = read_journal(path)
    assert identity == Identity(100, "a" * 64) and ranges.spans == [(0, 20), (50, 60)]
    Journal(path, identity, ranges).close()
    assert read_journal(path)[1].spans == [(0, 20), (50, 60)]


def test_any_cut_of_the_file_is_a_true_subset(path):
    written(path, [(0, 10), (50, 60), (10, 20), (90, 100)]).close()
    text = path.read_bytes()
    for length in range(len(text)):
        path.write_bytes(text[:length])
        found = read_journal(path)
        if found:
            covered = {b for low, high in found[1].spans for b in range(low, high)}
            assert covered <= {*range(0, 20), *range(50, 60), *range(90, 100)}


def test_after_a_reboot_only_synced_ranges_are_believed(path):
    journal = written(path, [(0, 10), (20, 30)])
    with (path.parent / "x").open("r+b") as partial:
        journal.sync(partial.fileno())
    journal.mark(40, 50)
    journal.close()
    assert read_journal(path)[1].spans == [(0, 10), (20, 30), (40, 50)]
    head, rest = path.read_text().split("\n", 1)
    header = json.loads(head)
    header["boot"] = "another"
    path.write_text(json.dumps(header) + "\n" + rest)
    assert read_journal(path)[1].spans == [(0, 10), (20, 30)]


@pytest.mark.parametrize("text", [
    b"", b"{}\n", b"[]\n", b"null\n", b"\xff\n", b'{"version": 2}\n',
    b'{"version": 1, "boot": "", "size": -1}\n', b'{"version": 1, "boot": "", "size": "9"}\n',
    b'{"version": 1, "boot": "", "size": 9, "more": 1}\n'])
def test_what_is_no_journal_is_none(path, text):
    path.write_bytes(text)
    assert read_journal(path) is None


@pytest.mark.parametrize("line", ["5 5", "7 3", "0 101", "0 99999999999999999999999", "-1 5", "a b", "1 2 3"])
def test_ranges_outside_the_file_are_not_believed(path, line):
    journal = written(path, [(0, 10)])
    journal.close()
    with path.open("a") as file:
        file.write(line + "\n")
    found = read_journal(path)
    assert found is None or found[1].spans == [(0, 10)]


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_no_bytes_crash_the_reader(tmp_path_factory, noise):
    path = tmp_path_factory.getbasetemp() / "noise.journal"
    written(path, [(0, 10)]).close()
    path.write_bytes(path.read_bytes()[:60] + noise)
    read_journal(path)
    path.write_bytes(noise)
    read_journal(path)
