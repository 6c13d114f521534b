"""Ctrl-C as a flag."""

import os
import signal
import threading

import pytest

from openhearth.cli.interrupt import catch_interrupt


def press():
    os.kill(os.getpid(), signal.SIGINT)


def test_first_press_sets_the_flag_and_second_one_raises():
    with pytest.raises(KeyboardInterrupt), catch_interrupt() as interrupt:
        assert not interrupt.is_set
        press()
        assert interrupt.is_set
        press()


def test_the_handler_of_before_is_back_afterwards():
    before = signal.getsignal(signal.SIGINT)
    with catch_interrupt():
        assert signal.getsignal(signal.SIGINT) != before
    assert signal.getsignal(signal.SIGINT) == before
    with pytest.raises(KeyboardInterrupt):
        press()
        signal.sigtimedwait([], 0.1)


def test_ctrl_c_stays_ignored_where_it_was_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with catch_interrupt() as interrupt:
            press()
            assert not interrupt.is_set
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_get_a_flag_that_stays_unset():
    seen = []

    def work():
        with catch_interrupt() as interrupt:
            seen.append(interrupt.is_set)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]
