"""Grading with a limit on time and memory: each grader runs in a process that can be killed.

A grader reads what a model wrote: it may meet a formula that takes years, a pattern that backtracks
forever, or a number that fills the memory. Such a response costs its own verdict (`grader_failed`) and
nothing else: the process is replaced and the next response is graded.

Tasks that were put together in code (no name) are graded in this process, without limits.

Does not: hold a hostile grader; it runs with the user's rights. Hostile responses that are code are the
business of `graders/code.py`.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

from openhearth.tasks.records import Problem, Task, Verdict, grader_failed

DEADLINE_S = 20.0
_START_S = 120.0
_MEMORY_BYTES = 4 << 30
_MAX_RESPONSE = 1 << 20


class Grading:
    """Grades responses to the problems of some tasks, several at a time.

    deadline_s: seconds for one response. num_workers: processes, started when first needed. Use as a
    context manager, or call `close`. Example: ``Grading([find("chain_sum")]).grade(0, problem, text)``.
    """

    def __init__(self, tasks: Sequence[Task], *, deadline_s: float = DEADLINE_S,
                 num_workers: int = 1) -> None:
        self.tasks = tuple(tasks)
        self._deadline_s = deadline_s
        self._threads = ThreadPoolExecutor(max_workers=num_workers, thread_name_prefix="grading")
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        for _ in range(num_workers):
            self._idle.put(_Worker(self.tasks))

    def __enter__(self) -> Grading:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(self, task: int, problem: Problem, response: str) -> Future[Verdict]:
        """Grade in the background. task: its place among those given. Never raises for a bad grader."""
        return self._threads.submit(self.grade, task, problem, response)

    def grade(self, task: int, problem: Problem, response: str) -> Verdict:
        """Grade now. A grader that raises, dies or takes too long gives `grader_failed`."""
        if len(response) > _MAX_RESPONSE:
            return grader_failed(f"a response of {len(response)} characters, the limit is {_MAX_RESPONSE}")
        if self.tasks[task].name is None:
            return self.tasks[task].grade(problem, response)
        worker = self._idle.get()
        try:
            return worker.grade(task, problem, response, self._deadline_s)
        finally:
            self._idle.put(worker)

    def close(self) -> None:
        """End the processes; what is still being graded is given up."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        while not self._idle.empty():
            self._idle.get().stop()


class _Worker:
    """One process that grades; started when needed, again after it was killed."""

    def __init__(self, tasks: tuple[Task, ...]) -> None:
        self._tasks = tasks
        self._process: subprocess.Popen[bytes] | None = None

    def grade(self, task: int, problem: Problem, response: str, deadline_s: float) -> Verdict:
        try:
            line = json.dumps({"task": task, "problem": asdict(problem), "response": response,
                               "deadline_s": deadline_s})
        except (TypeError, ValueError) as error:
            return grader_failed(f"the problem is not made of JSON values: {error}")
        try:
            if self._process is None:
                self._start()
            answer = self._ask(line, deadline_s)
        except (_Late, OSError, ValueError) as error:
            self.stop()
            return grader_failed(str(error) if isinstance(error, _Late) else "the grading process died")
        return Verdict(answer["kind"], answer["reward"], answer["reason"])

    def _start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from openhearth.tasks.grading import serve; serve()"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=_environment())
        self._ask(json.dumps([task.name for task in self._tasks]), _START_S)

    def _ask(self, line: str, limit_s: float) -> Any:
        process = self._process
        timer = threading.Timer(limit_s, process.kill)
        timer.start()
        try:
            process.stdin.write(line.encode() + b"\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        finally:
            is_late = timer.finished.is_set()
            timer.cancel()
        if not answer:
            raise _Late(f"not graded within {limit_s:g} s" if is_late else "the grading process died")
        return json.loads(answer)

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.stdout.close()
            process.wait()
            # A write that found no reader is still in the buffer; closing would try it again.
            process.stdin.raw.close()


class _Late(Exception):
    pass


def _environment() -> dict[str, str]:
    """Return this process's environment, with what it can import importable there."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def serve() -> None:
    """Grade what arrives on stdin, one JSON line each, until it ends: the grading process's main.

    What graders print goes to stderr. An alarm, which no grader can outwait, ends the process when the
    one who asked has gone away and cannot.
    """
    import logging
    import resource
    import signal

    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.disable(logging.WARNING)
    with contextlib.suppress(ValueError, OSError):  # where the user's own limit is lower, it holds
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    tasks: list[Task] | None = None
    for line in sys.stdin:
        request = json.loads(line)
        if tasks is None:
            tasks, answer = _find(request), {}
        else:
            signal.setitimer(signal.ITIMER_REAL, request["deadline_s"] + 5)
            problem = Problem(**{**request["problem"], "messages": tuple(request["problem"]["messages"])})
            answer = asdict(tasks[request["task"]].grade(problem, request["response"]))
            signal.setitimer(signal.ITIMER_REAL, 0)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _find(names: list[str | None]) -> list[Task]:
    from openhearth.tasks.finding import find

    return [find(name) if name is not None else Task(None, {}, _unnamed) for name in names]


def _unnamed(problem: Problem, response: str) -> Verdict:
    raise AssertionError("a task without a name is graded where it was made")
