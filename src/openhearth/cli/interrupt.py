"""Ctrl-C that asks an answer to stop instead of tearing through the middle of an engine step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Interrupt:
    """Whether Ctrl-C was pressed since the block began."""

    def __init__(self) -> None:
        self.is_set = False

    def _note(self, signum: int, frame: object) -> None:
        if self.is_set:
            raise KeyboardInterrupt
        self.is_set = True


@contextmanager
def catch_interrupt() -> Iterator[Interrupt]:
    """Turn the first Ctrl-C inside the block into a flag; a second one raises KeyboardInterrupt.

    Outside of the main thread, where Python delivers no signals, the flag stays unset.
    """
    interrupt = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return
    before = signal.signal(signal.SIGINT, interrupt._note)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, before)
