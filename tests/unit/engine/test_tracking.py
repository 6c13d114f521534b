"""Times are forgotten, but not those of open requests; completions are put together from events."""

import pytest

from openhearth.engine.records import TokenEvent
from openhearth.engine.tracking import Collector, Ledger
from openhearth.errors import HearthError, UsageError


def test_times_of_old_requests_are_forgotten_and_those_of_open_ones_kept():
    ledger = Ledger()
    for request_id in range(1500):
        ledger.open(request_id)
        if request_id:
            ledger.close(request_id)
    assert ledger.timings(0).decode_tokens == 0
    assert ledger.timings(500).decode_tokens == 0
    with pytest.raises(UsageError, match="request 499 is unknown"):
        ledger.timings(499)


def test_events_become_completions_in_order_of_their_index():
    collector = Collector()
    collector.open(7, 2, "w")
    assert not collector.add(TokenEvent(8, 0, 1, -0.5))
    for event in (TokenEvent(7, 1, 4, -1.0, ((4, -1.0),)), TokenEvent(7, 0, 5, -2.0, finish_reason="length"),
                  TokenEvent(7, 1, None, None, finish_reason="stop")):
        assert not collector.is_complete
        assert collector.add(event)
    assert collector.is_complete
    first, second = collector.completions(7, cached_tokens=3)
    assert (first.index, first.token_ids, first.logprobs, first.finish_reason) == (0, (5,), (-2.0,), "length")
    assert (second.token_ids, second.top_logprobs, second.finish_reason) == ((4,), (((4, -1.0),),), "stop")
    assert (second.cached_tokens, second.weights_version) == (3, "w")


def test_an_error_that_an_event_carries_is_raised():
    collector = Collector()
    collector.open(1, 1, "w")
    with pytest.raises(HearthError, match="broken"):
        collector.add(TokenEvent(1, 0, None, None, finish_reason="error", error=HearthError("broken")))
