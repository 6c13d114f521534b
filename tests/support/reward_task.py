"""Tasks for tests of reinforcement learning: a tiny random model can learn what they reward."""

import time
import zlib

from openhearth.tasks import Listed, Problem, Task, correct, wrong

_PROBLEMS = [Problem(f"item/{number}", ({"role": "user", "content": f"item {number}"},), "e", split=split)
             for split in ("train", "test") for number in range(24)]
_SPLITS = {split: Listed([problem for problem in _PROBLEMS if problem.split == split])
           for split in ("train", "test")}


def _has_e(problem, response):
    return correct() if "e" in response else wrong("no e")


def _fails_often(problem, response):
    if zlib.crc32(response.encode()) % 3 == 0:
        raise ValueError("cannot say")
    return _has_e(problem, response)


def _slow(problem, response):
    time.sleep(0.02)
    return _has_e(problem, response)


letter = Task("letter", _SPLITS, _has_e, source="a test", max_tokens=8)
failing = Task("failing", _SPLITS, _fails_often, source="a test", max_tokens=8)
slow = Task("slow", _SPLITS, _slow, source="a test", max_tokens=8)
