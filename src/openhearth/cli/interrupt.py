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

    Outside of the main thread, where Python delivers no signals, the flag stays unset, and so it does
    in a process that was started with Ctrl-C ignored (a shell's background job).
    """
    interrupt = Interrupt()
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        yield interrupt
        return
    before = signal.signal(signal.SIGINT, interrupt._note)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, before)
