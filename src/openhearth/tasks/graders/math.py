"""A number or formula is equal to the reference: MATH's ``\\boxed{...}`` and GSM8K's ``#### n``.

`math-verify` reads LaTeX and compares values, so 1/2, 0.5 and \\frac{1}{2} are one answer. Where an answer
was marked, the last mark counts and nothing else: a number in passing is no answer, and where the
reference is a number, neither is a sum that equals it.

Does not: limit the time itself (`grading.Grading` does; that package's own alarm works in the main thread
of a process only and is off).
"""

from __future__ import annotations

import re

from openhearth.tasks.packages import need
from openhearth.tasks.records import Problem, Verdict, correct, no_answer, wrong
from openhearth.tasks.tags import last_number, tagged_answer, without_thinking

_MARK = re.compile(r"####[ \t]*([^\n]+)")
_MAX_CHARS = 400
_NUMBER = re.compile(r"[-+]?[\d.,]+")
_UNFINISHED = re.compile(r"[+*^!]|\\(?:times|cdot|int|sum|prod|binom)|[\d)}]\s*-")
_GROUPED = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")


def grade(problem: Problem, response: str) -> Verdict:
    """Judge the last \\boxed{...}, ``#### n`` or <answer>...</answer> of a response.

    Raises: Unsupported without `math-verify`; ValueError when the reference itself cannot be read.
    """
    text = without_thinking(response)
    answer = marked_answer(text)
    if not answer:
        return no_answer("no \\boxed{...}, `#### n` or <answer>...</answer> in the response")
    if len(answer) > _MAX_CHARS:
        return wrong(f"an answer of {len(answer)} characters, expected {problem.answer[:80]}")
    if _NUMBER.fullmatch(problem.answer) and _UNFINISHED.search(answer.lstrip("+$ ")):
        return wrong(f"`{answer[:80]}` is still to be computed, expected {problem.answer[:80]}")
    verify = need("math_verify", "math-verify")
    expected = _parse(verify, problem.answer)
    if not expected:
        raise ValueError(f"the reference `{problem.answer[:80]}` is neither a number nor a formula")
    try:
        got = _parse(verify, answer)
    except Exception:  # the reader's own mistakes are many; the reference was read, so it works
        got = []
    if not got:
        return no_answer(f"`{answer[:80]}` is neither a number nor a formula")
    if verify.verify(expected, got, timeout_seconds=None, raise_on_error=True):
        return correct()
    return wrong(f"got {answer[:80]}, expected {problem.answer[:80]}")


def grade_last(problem: Problem, response: str) -> Verdict:
    """As `grade`, but the last number of a response without any mark is its answer."""
    text = without_thinking(response)
    if marked_answer(text) is None:
        number = last_number(text)
        return no_answer("no number in the response") if number is None else grade(problem, f"#### {number}")
    return grade(problem, text)


def marked_answer(text: str) -> str | None:
    """Return the content of the mark that comes last in the text; None without one."""
    found = [(text.rfind("\\boxed{"), _boxed(text)), (text.rfind("<answer>"), tagged_answer(text))]
    found += [(match.start(), match.group(1)) for match in _MARK.finditer(text)]
    place, answer = max(found, key=lambda pair: pair[0] if pair[1] is not None else -1)
    return answer.strip() if answer is not None and place >= 0 else None


def _boxed(text: str) -> str | None:
    """Return what the last \\boxed{...} holds; None without one, or when its brace never closes."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth = 0
    for place in range(start + len("\\boxed"), len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[start + len("\\boxed{"):place]
    return None


def _parse(verify, answer: str) -> list:
    body = _GROUPED.sub("", answer.strip().strip("$").rstrip(".").strip())
    return verify.parse(f"\\boxed{{{body}}}", parsing_timeout=None, raise_on_error=True)
