"""The protocol of a worker: one engine in one process, work as JSON lines on stdin, answers on stdout.

A worker loads its model once and then answers

    {"prompts": [[ids], ...], "new_tokens": N, "settings": {}}   with   {"first_s", "total_s", "tokens", ...}
    {"score": [ids]}                                             with   {"logprobs": [...]}, where it can

settings are those that need no new load, for engines that have such.
Seconds count from the start of the work; first_s is the first token of any prompt. Decoding is greedy and
never stops early. The runner passes fresh random prompts, so no cache of prefixes can help.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Protocol


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
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    started = time.perf_counter()
    engine = open_engine(sys.argv[1], json.loads(sys.argv[2]))
    _answer(answers, {"flags": engine.flags, "load_s": time.perf_counter() - started})
    for line in sys.stdin:
        work = json.loads(line)
        if "score" in work:
            _answer(answers, {"logprobs": engine.score(work["score"])})
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


def _peak_memory_bytes() -> int:
    """Peak resident memory; not `ru_maxrss`, which begins with that of the process that started this one."""
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024


def _answer(answers, record: dict) -> None:
    answers.write(json.dumps(record) + "\n")
    answers.flush()
