"""Python code that a model wrote passes unit tests, run in `sandbox.py`.

`Problem.metadata["tests"]` is a list of ``{"call": "f(2)", "expected": 4}``, of ``{"stdin": "2\\n",
"stdout": "4\\n"}``, or of texts ``assert f(2) == 4``. What is expected never enters the sandbox: results are
compared out here, so that code can neither look at the answers nor declare itself right by leaving early,
by an ``__eq__`` that is always true, or by printing what a test would print. Asserts are taken apart for
that; one that is no comparison with a literal is refused.

Does not: give partial rewards; all tests pass, or the answer is wrong.
"""

from __future__ import annotations

import ast
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

from openhearth.tasks.graders import sandbox
from openhearth.tasks.records import Grader, Problem, Verdict, correct, no_answer, wrong
from openhearth.tasks.tags import without_thinking

_FENCE = re.compile(r"^```[ \t]*(\w*)[^\n]*\n(.*?)^```[ \t]*$", re.DOTALL | re.MULTILINE)
_LANGUAGES = {"", "python", "python3", "py"}


def code(*, time_s: float = 10.0, memory_bytes: int = 512 << 20) -> Grader:
    """Return a grader that runs the last fenced block of Python. time_s: for all tests of a problem.

    It raises ValueError for a problem whose tests are of none of the forms above, Unsupported where no
    sandbox can be made.
    """
    def grade(problem: Problem, response: str) -> Verdict:
        tests = [_parse(test) for test in problem.metadata.get("tests", ())]
        if not tests:
            raise ValueError(f"problem `{problem.id}` has no tests")
        source = last_block(without_thinking(response))
        if source is None:
            return no_answer("no fenced block of Python in the response")
        deadline = time.monotonic() + time_s
        calls = [test for test in tests if "call" in test]
        if calls:
            run = sandbox.run_calls(source, [test["call"] for test in calls], time_s=time_s,
                                    memory_bytes=memory_bytes)
            failure = _judge_calls(run, calls)
            if failure is not None:
                return wrong(failure)
        for number, test in enumerate(tests):
            if "stdin" in test:
                run = sandbox.run_program(source, test["stdin"], memory_bytes=memory_bytes,
                                          time_s=max(0.01, deadline - time.monotonic()))
                failure = _judge_program(run, test["stdout"], number, time_s)
                if failure is not None:
                    return wrong(failure)
        return correct(f"{len(tests)} tests")

    return grade


def last_block(text: str) -> str | None:
    """Return the last fenced block that is Python or of no named language; None without one."""
    blocks = [body for language, body in _FENCE.findall(text) if language.lower() in _LANGUAGES]
    return blocks[-1] if blocks else None


def _parse(test: Any) -> Mapping[str, Any]:
    """Return a test as call and expected value, or as stdin and stdout. Raises: ValueError."""
    if isinstance(test, str):
        return _parse_assert(test)
    if isinstance(test, Mapping) and set(test) in ({"call", "expected"}, {"stdin", "stdout"}):
        return test
    raise ValueError(f"`{str(test)[:80]}` is no test: no call and expected, stdin and stdout, or assert")


def _parse_assert(text: str) -> Mapping[str, Any]:
    try:
        [statement] = ast.parse(text.strip()).body
        assert isinstance(statement, ast.Assert)
        compared = statement.test
        assert isinstance(compared, ast.Compare) and [type(op) for op in compared.ops] == [ast.Eq]
        return {"call": ast.unparse(compared.left), "expected": ast.literal_eval(compared.comparators[0])}
    except (ValueError, SyntaxError, AssertionError) as error:
        raise ValueError(f"`{text[:80]}` is not of the form `assert CALL == LITERAL`") from error


def _judge_calls(run: sandbox.Run, tests: Sequence[Mapping[str, Any]]) -> str | None:
    """Return the first failure, None when every call gave what was expected."""
    for number, test in enumerate(tests):
        if number >= len(run.outcomes):
            return f"{test['call'][:80]}: {run.stopped or 'the program ended before it was called'}"
        outcome = run.outcomes[number]
        if outcome.error is not None or outcome.value is None:
            return f"{test['call'][:80]}: {outcome.error}"
        try:
            value = ast.literal_eval(outcome.value)
        except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
            return f"{test['call'][:80]}: the result is no plain value"
        if not _is_equal(value, test["expected"]):
            return f"{test['call'][:80]} is {outcome.value[:80]}, expected {test['expected']!r:.80}"
    return None


def _is_equal(value: Any, expected: Any) -> bool:
    """Compare plain values. JSON has no tuples, so a tuple equals a list of the same values."""
    if isinstance(value, (list, tuple)) and isinstance(expected, (list, tuple)):
        return len(value) == len(expected) and all(map(_is_equal, value, expected))
    if isinstance(value, bool) != isinstance(expected, bool):
        return False
    if isinstance(value, float) and isinstance(expected, (int, float)):
        return abs(value - expected) <= 1e-9 * max(1.0, abs(value), abs(expected))
    return bool(value == expected)


def _judge_program(run: sandbox.Run, expected: str, number: int, time_s: float) -> str | None:
    if run.stopped is not None:
        return f"test {number}: {run.stopped if 'output' in run.stopped else f'not done within {time_s:g} s'}"
    if not run.outcomes or run.outcomes[0].error is not None:
        return f"test {number}: {run.outcomes[0].error if run.outcomes else 'the program was ended'}"
    if [line.rstrip() for line in run.stdout.rstrip().splitlines()] != [
            line.rstrip() for line in expected.rstrip().splitlines()]:
        return f"test {number}: printed {run.stdout[:60]!r}, expected {expected[:60]!r}"
    return None
