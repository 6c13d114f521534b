"""What people see while bytes arrive: a live display on a terminal, a few plain lines elsewhere.

Everything goes to stderr; `rich` is imported when a terminal really shows something.

Does not: measure or decide anything; `hub` reports, this draws.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator

from openhearth.cli.interrupt import raise_on_interrupt
from openhearth.cli.output import print_note
from openhearth.hub.records import OnProgress, Progress
from openhearth.units import format_bytes, format_seconds

_PHASES = {"download": "fetching", "wait": "waiting for another process that fetches", "verify": "checking",
           "unpack": "unpacking"}
_WORTH_A_LINE_BYTES = 64 << 20


@contextlib.contextmanager
def show_progress() -> Iterator[OnProgress]:
    """Yield what `hub.pull` and `hub.find` take as on_progress; the display ends with the block.

    Ctrl-C raises inside the block, so that a transfer puts down what arrived.
    """
    with raise_on_interrupt(), _display() as on_progress:
        yield on_progress


@contextlib.contextmanager
def _display() -> Iterator[OnProgress]:
    if sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        display = _Live()
        try:
            yield display.update
        finally:
            display.close()
    else:
        lines = _Lines()
        yield lines.update
        lines.close()


class _Lines:
    """One line when a file starts, one with the rate when everything is there."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.told: set[tuple[str, str]] = set()
        self.notes: set[str] = set()
        self.fetched: dict[str, int] = {}

    def update(self, progress: Progress) -> None:
        if progress.phase == "download":
            self.fetched[progress.path] = progress.done_bytes - progress.resumed_bytes
        if progress.note and progress.note not in self.notes:
            self.notes.add(progress.note)
            print_note(f"{progress.path}: {progress.note}")
        key = (progress.path, progress.phase)
        is_small = (progress.total_bytes or 0) < _WORTH_A_LINE_BYTES
        if key in self.told or (is_small and progress.phase in {"verify", "unpack"}):
            return
        self.told.add(key)
        size = format_bytes(progress.total_bytes) if progress.total_bytes is not None else "size unknown"
        resumed = f", {format_bytes(progress.resumed_bytes)} already here" if progress.resumed_bytes else ""
        print_note(f"{_PHASES[progress.phase]} {progress.path} ({size}{resumed})")

    def close(self) -> None:
        if self.fetched:
            num_bytes, seconds = sum(self.fetched.values()), time.monotonic() - self.started
            print_note(f"fetched {format_bytes(num_bytes)} in {format_seconds(seconds)}, "
                       f"{format_bytes(num_bytes / max(seconds, 1e-3))}/s")


class _Live:
    """Bars with rate and time left, one per file under way."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )
        from rich.progress import Progress as Bars

        self.bars = Bars(TextColumn("{task.description}", markup=False), BarColumn(bar_width=24),
                         DownloadColumn(binary_units=True), TransferSpeedColumn(), TimeRemainingColumn(),
                         TextColumn("{task.fields[resumed]}", markup=False),
                         console=Console(stderr=True), transient=True)
        self.tasks: dict[str, tuple[str, int]] = {}
        self.notes: set[str] = set()
        self.bars.start()

    def update(self, progress: Progress) -> None:
        if progress.note and progress.note not in self.notes:
            self.notes.add(progress.note)
            self.bars.console.print(f"{progress.path}: {progress.note}", markup=False, highlight=False)
        phase, task = self.tasks.get(progress.path, ("", None))
        if phase != progress.phase:
            if task is not None:
                self.bars.remove_task(task)
            resumed = f"{format_bytes(progress.resumed_bytes)} resumed" if progress.resumed_bytes else ""
            # What was there before is no part of the rate, so the task starts with it.
            task = self.bars.add_task(f"{_PHASES[progress.phase]} {progress.path}", resumed=resumed,
                                      total=progress.total_bytes, completed=progress.resumed_bytes)
            self.tasks[progress.path] = (progress.phase, task)
        self.bars.update(task, completed=progress.done_bytes, total=progress.total_bytes)
        if progress.phase != "download" and progress.done_bytes == progress.total_bytes:
            self.bars.update(task, visible=False)

    def close(self) -> None:
        self.bars.stop()
