"""The protocol of a worker: one engine in one process, work as JSON lines on stdin, answers on stdout.

A worker loads its model once and then answers

    {"prompts": [[ids], ...], "new_tokens": N, "settings": {}}   with   {"first_s", "total_s", "tokens", ...}
    {"score": [ids]}                                             with   {"logprobs": [...]}, where it can
    {"sample": [[ids], ...], "new_tokens": N}                    with   {"sampled", "trained"}, where it can

settings are those that need no new load, for engines that have such. A worker that trains (`Steps`) does
one step per line instead.
Seconds count from the start of the work; first_s is the first token of any prompt. Decoding is greedy and
never stops early. The runner passes fresh random prompts, so no cache of prefixes can help.
"""

from __future__ import annotations

import glob
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol


class Engine(Protocol):
    """What a worker wraps. flags: the settings of the last run in words, for the results."""

    flags: str

    def run(self, prompts: list[list[int]], new_tokens: int,
            **settings) -> tuple[float, float, float, list[list[int]]]:
        """Return when it began, when the first token and when all were there, and the tokens.

        Times are `time.perf_counter`. What only makes room for the work may come before the beginning.
        """


def serve(open_engine) -> None:
    """Open the engine named by the arguments (MODEL, then JSON settings) and answer until stdin ends.

    What libraries print to stdout goes to stderr, so that answers stand alone.
    """
    answers = _take_stdout()
    started = time.perf_counter()
    engine = open_engine(sys.argv[1], json.loads(sys.argv[2]))
    _answer(answers, {"flags": engine.flags, "load_s": time.perf_counter() - started})
    for line in sys.stdin:
        work = json.loads(line)
        if "score" in work:
            _answer(answers, {"logprobs": engine.score(work["score"])})
            continue
        if "sample" in work:
            sampled, trained = engine.sample(work["sample"], work["new_tokens"])
            _answer(answers, {"sampled": sampled, "trained": trained})
            continue
        before, received = os.times(), time.perf_counter()
        started, first, last, tokens = engine.run(work["prompts"], work["new_tokens"],
                                                    **work.get("settings", {}))
        after = os.times()
        wrong = [len(row) for row in tokens if len(row) != work["new_tokens"]]
        if wrong or len(tokens) != len(work["prompts"]):
            raise SystemExit(f"asked for {len(work['prompts'])} x {work['new_tokens']} tokens, got {wrong}")
        _answer(answers, {
            "first_s": first - started, "total_s": last - started, "num_tokens": sum(map(len, tokens)),
            "flags": engine.flags, "tokens": tokens, "wall_s": time.perf_counter() - received,
            "cpu_s": after.user + after.system - before.user - before.system,
            "peak_memory_bytes": _peak_memory_bytes()})


class Ended(Exception):
    """Nobody asks for another step."""


class Steps:
    """The steps of a training loop, one per line asked for: the loop calls `done` after each of its own.

    The first step warms up; the worker says that it is loaded when that ends.
    """

    def __init__(self) -> None:
        self._answers = _take_stdout()
        self._is_loaded = False
        self._parts: dict[str, float] = {}
        self._begin()

    def time(self, owner: Any, method: str, part: str) -> None:
        """From now on add up the seconds inside a method of an object or class as a part of the step."""
        inner = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return inner(*args, **kwargs)
            finally:
                self.note(part, time.perf_counter() - started)

        setattr(owner, method, timed)

    def note(self, part: str, seconds: float) -> None:
        """Add to a part of the step."""
        self._parts[part] = self._parts.get(part, 0.0) + seconds

    def done(self, num_tokens: int, flags: str, **found: float) -> None:
        """Answer, and wait for the next line. found: what else was measured. Raises: Ended."""
        seconds, after = time.perf_counter() - self._started, os.times()
        cpu_s = after.user + after.system - self._before.user - self._before.system
        answer = {"flags": flags, "total_s": seconds, "cpu_s": cpu_s, "num_tokens": num_tokens,
                  "parts": self._parts, "peak_memory_bytes": _peak_memory_bytes(), **found}
        _answer(self._answers, answer if self._is_loaded else answer | {"load_s": seconds})
        self._is_loaded = True
        if not sys.stdin.readline():
            raise Ended
        self._begin()

    def _begin(self) -> None:
        self._parts = {}
        self._before, self._started = os.times(), time.perf_counter()


def serve_steps(train: Callable[[str, dict, Steps], None]) -> None:
    """Train what the arguments name (MODEL, then JSON settings), one step per line, until stdin ends."""
    steps = Steps()
    try:
        train(sys.argv[1], json.loads(sys.argv[2]), steps)
    except Ended:
        return
    raise SystemExit("the training ended by itself")


def _take_stdout() -> Any:
    """Return the stream of the answers; what libraries print to stdout goes to stderr from here on."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


def _peak_memory_bytes() -> int:
    """Peak resident memory of this process and of those that it started, as far as they still run.

    Not `ru_maxrss`, which begins with that of the process that started this one.
    """
    processes = ["self"]
    for path in glob.glob("/proc/self/task/*/children"):
        with open(path, encoding="ascii") as children:
            processes += children.read().split()
    total = 0
    for process in processes:
        with open(f"/proc/{process}/status", encoding="ascii") as status:
            total += next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024
    return total


def _answer(answers, record: dict) -> None:
    answers.write(json.dumps(record) + "\n")
    answers.flush()
