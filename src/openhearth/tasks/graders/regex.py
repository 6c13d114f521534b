"""The answer matches a pattern."""

from __future__ import annotations

import re

from openhearth.errors import UsageError
from openhearth.tasks.records import Grader, Problem, Verdict, correct, no_answer, wrong
from openhearth.tasks.tags import tagged_answer, without_thinking


def regex(pattern: str | None = None, *, is_tagged: bool = False, ignore_case: bool = False) -> Grader:
    """Return a grader that wants the whole answer to match a pattern of the module `re`.

    pattern: None takes `Problem.answer` as the pattern. is_tagged: the answer stands between <answer>
    tags, else it is the whole response but its thinking, white space around it left out.
    Raises: UsageError when the pattern is none. Does not limit the time of a pattern: `Grading` does.
    """
    flags = re.DOTALL | (re.IGNORECASE if ignore_case else 0)
    if pattern is not None:
        try:
            re.compile(pattern, flags)
        except re.error as error:
            raise UsageError(f"`{pattern}` is no pattern", why=f"{error}",
                             hint="see the syntax of Python's re") from error

    def grade(problem: Problem, response: str) -> Verdict:
        answer = tagged_answer(response) if is_tagged else without_thinking(response).strip()
        if not answer:
            return no_answer("no <answer>...</answer> in the response" if is_tagged else "nothing was said")
        if re.fullmatch(problem.answer if pattern is None else pattern, answer, flags):
            return correct()
        return wrong(f"{answer[:80]!r} does not match")

    return grade
