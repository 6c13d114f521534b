"""Run Python that a model wrote, in a process that can do nothing but compute.

On Linux (x86-64, AArch64) the program cannot: open a socket, start a process, signal another one, write or
change any file, use more than its memory and time, or make this process keep more than a bounded output.
Those follow from a system call filter and resource limits, which are required: where the kernel refuses
them nothing is run. Where the kernel has Landlock, only the system's libraries can be read; where it
grants user name spaces, there is no network device either. `Run.walls` says which of these held.

Does not: hide the processor, the time or the kernel's own faults. For code of a known attacker use a
virtual machine.
"""

from __future__ import annotations

import json
import math
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openhearth.errors import Unsupported

_CHILD = Path(__file__).with_name("sandbox_child.py")
_MEMORY_BYTES = 512 << 20
_OUTPUT_BYTES = 1 << 20


@dataclass(frozen=True)
class Outcome:
    """How one call or program ended: the text of its value, or an error. Example: ``Outcome("3", None)``."""

    value: str | None
    error: str | None


@dataclass(frozen=True)
class Run:
    """What a sandboxed process did.

    outcomes: one per call (one for a program); fewer when it ended early. walls: limits, system calls,
    and where the kernel has them files and name spaces. stopped: why it was killed; None when it was not.
    """

    outcomes: tuple[Outcome, ...]
    stdout: str
    walls: tuple[str, ...]
    stopped: str | None


def run_calls(source: str, calls: Sequence[str], *, time_s: float, memory_bytes: int = _MEMORY_BYTES) -> Run:
    """Run a module and evaluate expressions in it; an outcome's value is the ``repr`` of the result.

    Raises: Unsupported where no sandbox can be made.
    """
    return _run({"source": source, "calls": list(calls)}, time_s, memory_bytes)


def run_program(source: str, stdin: str, *, time_s: float, memory_bytes: int = _MEMORY_BYTES) -> Run:
    """Run a module as ``__main__`` with text on its stdin. Raises: as `run_calls`."""
    return _run({"source": source, "stdin": stdin}, time_s, memory_bytes)


def _run(job: dict[str, Any], time_s: float, memory_bytes: int) -> Run:
    if sys.platform != "linux":
        raise Unsupported(f"there is no sandbox for code on {sys.platform}",
                          why="it needs Linux's system call filter", hint="grade code tasks on Linux")
    reading, writing = os.pipe()
    try:
        # Nothing of the environment goes in; a fixed hash seed makes the order of sets repeatable.
        process = subprocess.Popen(
            [sys.executable, "-s", "-S", "-P", "-B", str(_CHILD)], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, pass_fds=(writing,), cwd="/",
            env={"PYTHONHASHSEED": "0"}, start_new_session=True)
    finally:
        os.close(writing)
    job = {**job, "report_fd": writing, "memory_bytes": memory_bytes, "cpu_s": math.ceil(time_s) + 1}
    try:
        stdout, report, stopped = _collect(process, reading, json.dumps(job).encode(), time_s)
    finally:
        _kill(process)
        os.close(reading)
    records = _records(report)
    if records and "refused" in records[0]:  # the first record is our own, the program runs after it
        raise Unsupported("there is no sandbox for code on this machine", why=str(records[0]["refused"]),
                          hint="grade code tasks on a Linux kernel with seccomp")
    walls = records[0].get("walls", ()) if records else ()
    outcomes = tuple(Outcome(record.get("value"), record.get("error")) for record in records[1:])
    return Run(outcomes, stdout.decode("utf-8", "replace"), tuple(walls), stopped)


def _collect(process: subprocess.Popen[bytes], reading: int, job: bytes,
             time_s: float) -> tuple[bytes, bytes, str | None]:
    """Feed the job and read both outputs until they end, the time is over, or they are too long."""
    deadline = time.monotonic() + time_s
    kept = {process.stdout.fileno(): bytearray(), reading: bytearray()}
    with selectors.DefaultSelector() as selector:
        os.set_blocking(process.stdin.fileno(), False)
        selector.register(process.stdin, selectors.EVENT_WRITE)
        for descriptor in kept:
            selector.register(descriptor, selectors.EVENT_READ)
        while selector.get_map():
            left = deadline - time.monotonic()
            if left <= 0:
                return *map(bytes, kept.values()), f"not done within {time_s:g} s"
            for key, _ in selector.select(left):
                if key.fileobj is process.stdin:
                    job = _feed(selector, process, job)
                    continue
                piece = os.read(key.fd, 1 << 16)
                kept[key.fd] += piece
                if not piece:
                    selector.unregister(key.fd)
                if len(kept[key.fd]) > _OUTPUT_BYTES:
                    return *map(bytes, kept.values()), f"more than {_OUTPUT_BYTES} bytes of output"
    stdout, report = map(bytes, kept.values())
    return stdout, report, None


def _feed(selector: selectors.BaseSelector, process: subprocess.Popen[bytes], job: bytes) -> bytes:
    try:
        job = job[os.write(process.stdin.fileno(), job):]
    except BrokenPipeError:
        job = b""
    if not job:
        selector.unregister(process.stdin)
        process.stdin.close()
    return job


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End the process and all that could be in its group, and reap it."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if not pipe.closed:
            pipe.close()


def _records(report: bytes) -> list[dict[str, Any]]:
    """Return the lines of a report; the program can write there too, so whatever is no record ends it."""
    records = []
    for line in report.split(b"\n")[:-1]:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            break
        if not isinstance(record, dict):
            break
        records.append(record)
    return records
