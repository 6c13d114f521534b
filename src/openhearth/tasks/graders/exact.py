"""The answer is the reference, word for word."""

from __future__ import annotations

from openhearth.tasks.records import Grader, Problem, Verdict, correct, no_answer, wrong
from openhearth.tasks.tags import tagged_answer, without_thinking


def exact(*, is_tagged: bool = False, ignore_case: bool = True) -> Grader:
    """Return a grader that compares text with `Problem.answer`; runs of white space count as one space.

    is_tagged: the answer stands between <answer> tags, else it is the whole response but its thinking.
    """
    def normal(text: str) -> str:
        words = " ".join(text.split())
        return words.casefold() if ignore_case else words

    def grade(problem: Problem, response: str) -> Verdict:
        answer = tagged_answer(response) if is_tagged else without_thinking(response).strip()
        if not answer:
            return no_answer("no <answer>...</answer> in the response" if is_tagged else "nothing was said")
        if normal(answer) == normal(problem.answer):
            return correct()
        return wrong(f"got {answer[:80]}, expected {problem.answer[:80]}")

    return grade
