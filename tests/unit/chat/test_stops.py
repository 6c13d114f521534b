import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openhearth.chat import StopStrings
from openhearth.errors import UsageError


def run(stops, pieces):
    stopper = StopStrings(stops)
    shown = []
    for piece in pieces:
        text, is_stopped = stopper.push(piece)
        shown.append(text)
        if is_stopped:
            return "".join(shown), True
    shown.append(stopper.finish())
    return "".join(shown), stopper.is_stopped


def expected(stops, text):
    found = [text.find(stop) for stop in stops if stop in text]
    return (text[: min(found)], True) if found else (text, False)


@settings(max_examples=300, deadline=None)
@given(
    stops=st.lists(st.text("ab\u00e9", min_size=1, max_size=5), max_size=4),
    text=st.text("ab\u00e9", max_size=25),
    cuts=st.lists(st.integers(0, 25), max_size=8),
)
def test_any_cutting_of_the_text_gives_the_same_result(stops, text, cuts):
    edges = sorted({0, len(text), *(cut for cut in cuts if cut <= len(text))})
    pieces = [text[a:b] for a, b in itertools.pairwise(edges)]
    assert run(stops, pieces) == expected(stops, text)
    assert run(stops, list(text)) == expected(stops, text)


@settings(max_examples=200, deadline=None)
@given(
    stops=st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3),
    text=st.text("abc", max_size=20),
)
def test_only_what_may_begin_a_stop_is_held_back(stops, text):
    stopper, shown = StopStrings(stops), ""
    for i, char in enumerate(text):
        piece, is_stopped = stopper.push(char)
        if is_stopped:
            return
        shown += piece
        held = text[len(shown) : i + 1]
        assert not held or any(
            stop.startswith(held) or held.startswith(stop) or held in stop for stop in stops
        )


def test_text_that_may_begin_a_stop_is_held_back_then_given():
    stopper = StopStrings(["END", "\n\n"])
    assert stopper.push("a E") == ("a ", False)
    assert stopper.push("N") == ("", False)
    assert stopper.push("d\n") == ("ENd", False)
    assert stopper.finish() == "\n"


def test_the_stop_that_begins_first_wins_over_the_one_completed_first():
    assert run(["b", "abc"], list("xabcd")) == ("x", True)
    assert run(["b", "abc"], list("xabd")) == ("xa", True)


def test_text_after_a_stop_is_dropped():
    stopper = StopStrings(["."])
    assert stopper.push("one. two") == ("one", True)
    assert stopper.push("three") == ("", True)
    assert stopper.finish() == ""


def test_no_stops_hold_nothing():
    assert StopStrings([]).push("abc") == ("abc", False)


def test_empty_stop_string_is_refused():
    with pytest.raises(UsageError, match="stop string is empty"):
        StopStrings(["a", ""])


def test_which_stop_was_met_is_known():
    for stops, pieces, met in ((["b", "ab"], ["xa", "b"], "ab"), (["ab", "abc"], ["ab", "c"], "ab"),
                               (["zz"], ["a"], None), (["end"], ["the e", "nd"], "end")):
        stopper = StopStrings(stops)
        for piece in pieces:
            stopper.push(piece)
        stopper.finish()
        assert (stopper.met, stopper.is_stopped) == (met, met is not None)
