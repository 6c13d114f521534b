"""Worked answers: the steps to a task's own solution, in a plain style that a small model can imitate.

They are what a model is fine-tuned on before reinforcement learning (a cold start), written from the problem
and its numbers, never by a model. One function per data set; the last number is the answer.

Does not: cover a data set that has no function here; its problems have no worked answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

_SUM = re.compile(r"problem: (?P<terms>[\d+\- ]+) =")
_TERM = re.compile(r"([+-]?) *(\d+)")


def worked_sum(question: str) -> str:
    """Return running totals, a line for each term after the first.

    Example: ``worked_sum("... problem: 12 + 30 - 5 =") == "12 + 30 = 42\\n42 - 5 = 37"``.
    """
    found = _SUM.search(question)
    if found is None:
        return ""
    (_, first), *rest = _TERM.findall(found["terms"])
    total, lines = int(first), []
    for sign, digits in rest:
        after = total - int(digits) if sign == "-" else total + int(digits)
        lines.append(f"{total} {sign} {digits} = {after}")
        total = after
    return "\n".join(lines)


WORKED: Mapping[str, Callable[[str], str]] = {"chain_sum": worked_sum}
"""Data set of reasoning-gym -> its question to a worked answer, "" where the question reads otherwise."""
