"""Grading in a process of its own: what hangs, dies or fills the memory costs its own verdict only."""

import json
import time

import pytest

from openhearth.tasks import Grading, Listed, Problem, Task, correct, find

NASTY = """
import ctypes, os, re, time
from openhearth.tasks import Listed, Problem, Task, correct, wrong

def grade(problem, response):
    print("a grader that prints")
    if response == "hang":
        time.sleep(60)
    if response == "loop":
        re.fullmatch("(a+)+b", "a" * 40)
    if response == "die":
        os._exit(3)
    if response == "crash":
        ctypes.string_at(0)
    if response == "fill":
        bytearray(1 << 40)
    if response == "raise":
        raise RuntimeError("broken")
    return correct() if response == problem.answer else wrong(f"{response} is not {problem.answer}")

task = Task(None, {"test": Listed([Problem("one", ({"role": "user", "content": "?"},), "right")])}, grade)
"""


@pytest.fixture(scope="module")
def nasty(tmp_path_factory):
    path = tmp_path_factory.mktemp("nasty") / "nasty.py"
    path.write_text(NASTY)
    return find(f"{path}:task")


def test_a_failed_grader_is_its_own_verdict_and_the_next_response_is_graded(nasty):
    problem = nasty.problem("test", 0)
    with Grading([nasty], deadline_s=2) as grading:
        for response, said in (("hang", "not graded within 2 s"), ("loop", "not graded within 2 s"),
                               ("die", "died"), ("crash", "died"), ("fill", "MemoryError"),
                               ("raise", "RuntimeError: broken")):
            started = time.monotonic()
            verdict = grading.grade(0, problem, response)
            assert (verdict.kind, verdict.reward) == ("grader_failed", None), response
            assert said in verdict.reason
            assert time.monotonic() - started < 50
            assert grading.grade(0, problem, "right") == correct()
            assert grading.grade(0, problem, "left").reason == "left is not right"


def test_many_at_a_time_keep_their_own_verdicts(nasty):
    problem = nasty.problem("test", 0)
    sums = find("chain_sum")
    asked = [sums.problem("test", i) for i in range(30)]
    with Grading([nasty, sums], num_workers=2) as grading:
        first = [grading.submit(0, problem, "right" if i % 3 else "left") for i in range(30)]
        second = [grading.submit(1, one, one.answer if i % 2 else "none") for i, one in enumerate(asked)]
        assert [future.result().passed for future in first] == [i % 3 > 0 for i in range(30)]
        assert [future.result().kind for future in second] == [
            "correct" if i % 2 else "no_answer" for i in range(30)]


def test_surrogates_and_line_ends_arrive_as_they_are(nasty):
    response = "a\nb\u2028c\ud800\x00"
    with Grading([nasty]) as grading:
        verdict = grading.grade(0, nasty.problem("test", 0), response)
    assert verdict.reason == f"{response} is not right"


def test_a_task_without_a_name_is_graded_here():
    def raises(problem, response):
        raise ValueError("no")

    task = Task(None, {"test": Listed([Problem("a", (), "")])}, raises)
    with Grading([task]) as grading:
        assert grading.grade(0, task.problem("test", 0), "x").reason == "ValueError: no"


def test_a_response_beyond_all_bounds_is_not_sent(nasty):
    with Grading([nasty]) as grading:
        assert grading.grade(0, nasty.problem("test", 0), "x" * (2 << 20)).kind == "grader_failed"


def test_formulas_that_would_take_for_ever_do_not(tmp_path):
    (tmp_path / "test.jsonl").write_text(json.dumps({"question": "q", "answer": "#### \\frac{1}{2}"}))
    task = find(f"gsm8k:path={tmp_path}")
    problem = task.problem("test", 0)
    with Grading([task], deadline_s=3) as grading:
        assert grading.grade(0, problem, "\\boxed{0.5}").passed
        for answer in ("9^{9^{9^{9^{9}}}}", "\\sqrt[9]{" * 30 + "2" + "}" * 30):
            started = time.monotonic()
            verdict = grading.grade(0, problem, f"\\boxed{{{answer}}}")
            assert not verdict.passed and time.monotonic() - started < 50, answer
        assert grading.grade(0, problem, "\\boxed{0.5}").passed
