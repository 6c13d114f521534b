"""Limits and usage: what is refused, when there is room again, what is written."""

import random
from datetime import UTC, datetime

import pytest

from openhearth.accounts import Key, KeyLimits, Meter, Usage, UsageStore
from openhearth.accounts.metering import Window
from openhearth.accounts.usage import Place
from openhearth.errors import LimitReached, UsageError

NOON = datetime(2026, 12, 31, 12, 30, tzinfo=UTC).timestamp()


class Clock:
    def __init__(self):
        self.now = NOON

    def __call__(self):
        return self.now


def key(**limits):
    return Key("alice", "", limits=KeyLimits(**limits))


def refusal(call, *args):
    with pytest.raises(LimitReached) as caught:
        call(*args)
    return caught.value


def flush(meter):
    meter.wrote(meter.write(meter.take()))


def test_a_window_agrees_with_counting_every_event():
    chance, window, events, now = random.Random(1), Window(), [], 1000.0
    for _ in range(3000):
        now += chance.random() * 3
        amount = chance.randrange(5)
        window.add(now, amount)
        events.append((int(now), amount))
        left = [one for one in events if one[0] + 61 > now]
        assert window.sum(now) == sum(amount for _, amount in left)
        room = chance.randrange(100)
        wait = window.wait_s(now, room)
        after = [sum(amount for second, amount in left if second + 61 > now + later)
                 for later in (wait, wait - 1)]
        assert after[0] <= room and (wait == 0 or after[1] > room)


def test_requests_per_minute_and_when_to_come_back():
    clock = Clock()
    meter, alice = Meter(clock=clock), key(requests_per_minute=2)
    meter.admit(alice)
    clock.now += 10
    meter.admit(alice)
    error = refusal(meter.admit, alice)
    assert "2 requests" in error.what and "limit is 2" in error.why
    assert (error.retry_after_s, error.is_quota) == (51, False)
    clock.now += error.retry_after_s
    meter.admit(alice)
    meter.admit(Key("bob", "", limits=KeyLimits(requests_per_minute=1)))


def test_tokens_per_minute_count_prompts_before_and_answers_after():
    clock = Clock()
    meter, alice = Meter(clock=clock), key(tokens_per_minute=100)
    meter.check_prompt(alice, 100)
    meter.add(alice, "m", Usage(prompt_tokens=60))
    assert refusal(meter.check_prompt, alice, 41).retry_after_s == 61
    meter.check_prompt(alice, 40)
    meter.add(alice, "m", Usage(completion_tokens=60))
    assert refusal(meter.admit, alice).retry_after_s == 61
    never = refusal(meter.check_prompt, alice, 101)
    assert never.retry_after_s is None and "shorter prompt" in never.hint
    clock.now += 61
    meter.admit(alice)


@pytest.mark.parametrize("limit,end", [("tokens_per_day", datetime(2027, 1, 1, tzinfo=UTC)),
                                       ("tokens_per_month", datetime(2027, 1, 1, tzinfo=UTC)),
                                       ("tokens_total", None)])
def test_quotas_hold_until_their_span_ends(tmp_path, limit, end):
    clock = Clock()
    meter, alice = Meter(UsageStore(tmp_path), clock=clock), key(**{limit: 50})
    meter.admit(alice)
    meter.add(alice, "m", Usage(prompt_tokens=20, completion_tokens=20))
    meter.check_prompt(alice, 10)
    assert refusal(meter.check_prompt, alice, 11).is_quota
    meter.add(alice, "m", Usage(completion_tokens=10))
    flush(meter)
    error = refusal(meter.admit, alice)
    assert "50 tokens" in error.what and "quota is 50" in error.why
    if end is None:
        assert error.retry_after_s is None
        clock.now += 400 * 86400
        flush(meter)
        refusal(meter.admit, alice)
    else:
        assert clock.now + error.retry_after_s == end.timestamp()
        clock.now = end.timestamp()
        flush(meter)
        meter.admit(alice)


def test_quotas_know_what_other_processes_and_earlier_ones_used(tmp_path):
    clock, alice = Clock(), key(tokens_total=100)
    one, other = (Meter(UsageStore(tmp_path), clock=clock) for _ in range(2))
    one.admit(alice)
    other.admit(alice)
    one.add(alice, "m", Usage(completion_tokens=60))
    flush(one)
    other.add(alice, "m", Usage(completion_tokens=40))
    other.admit(key(tokens_total=101))
    flush(other)
    assert other.spent(alice).total == 100
    refusal(other.admit, alice)
    refusal(Meter(UsageStore(tmp_path), clock=clock).admit, alice)


def test_usage_is_added_by_hour_key_and_model_and_never_lost_by_a_failed_write(tmp_path):
    clock, store = Clock(), UsageStore(tmp_path)
    meter, alice = Meter(store, clock=clock), key(tokens_total=10**6)
    meter.admit(alice)
    for model, hours in (("a", 0), ("a", 0), ("b", 0), ("a", 1)):
        clock.now = NOON + hours * 3600
        meter.add(alice, model, Usage(1, 0, 10, 5, 2))
        batch = meter.take()
        meter.give_back(batch)
    assert meter.spent(alice).total == 48
    flush(meter)
    flush(meter)
    hour = int(NOON) // 3600 * 3600
    assert store.read() == [(Place("alice", hour, "a"), Usage(2, 0, 20, 10, 4)),
                            (Place("alice", hour, "b"), Usage(1, 0, 10, 5, 2)),
                            (Place("alice", hour + 3600, "a"), Usage(1, 0, 10, 5, 2))]
    assert meter.spent(alice).total == 48
    assert store.read(since=hour + 1)[0][0].hour == hour + 3600
    assert len(store.read(until=hour + 3600)) == 2 and store.read(key="bob") == []


def test_a_database_that_another_holds_is_waited_for_and_then_refused(tmp_path):
    one, other = UsageStore(tmp_path), UsageStore(tmp_path)
    other._connection.execute("PRAGMA busy_timeout = 50")
    one._connection.execute("BEGIN IMMEDIATE")
    with pytest.raises(UsageError, match="locked"):
        other.add({Place("a", 0, "m"): Usage(1)})
    assert other.read() == []
