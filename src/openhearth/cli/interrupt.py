"""What Ctrl-C does, by what is going on: end the process, raise KeyboardInterrupt, or set a flag.

A command begins with `end_on_interrupt`: libraries are being imported or files read, nothing would be
lost, and an import that an exception cuts may hide it or end in another error. Work with something to
put in order asks for the exception (`raise_on_interrupt`), generation for the flag (`catch_interrupt`).

All three leave Ctrl-C ignored in a process that was started so (a shell's background job), and do
nothing outside of the main thread, where Python delivers no signals.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
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
def end_on_interrupt() -> Iterator[None]:
    """Let Ctrl-C inside the block end the process at once, with exit code 130."""
    with _handled_by(_end):
        yield


@contextmanager
def raise_on_interrupt() -> Iterator[None]:
    """Let Ctrl-C inside the block raise KeyboardInterrupt."""
    with _handled_by(signal.default_int_handler):
        yield


@contextmanager
def catch_interrupt() -> Iterator[Interrupt]:
    """Turn the first Ctrl-C inside the block into a flag; a second one raises KeyboardInterrupt."""
    interrupt = Interrupt()
    with _handled_by(interrupt._note):
        yield interrupt


@contextmanager
def _handled_by(handler: Callable[..., object]) -> Iterator[None]:
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        yield
        return
    before = signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _end(signum: int, frame: object) -> None:
    os.write(2, b"interrupted\n")
    os._exit(130)
