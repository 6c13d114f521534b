"""The task of the measured GRPO steps: `hearth tune grpo --task bench/peers/grpo_task.py:lines`."""

from __future__ import annotations

from training_work import QUESTIONS, reward

from openhearth.tasks import Problem, Task, Verdict
from openhearth.tasks.splits import Listed


def _grade(problem: Problem, response: str) -> Verdict:
    return Verdict("wrong", reward(response))


def _problem(place: int) -> Problem:
    return Problem(f"line/{place}", ({"role": "user", "content": QUESTIONS[place]},), "", split="train")


lines = Task("lines", {"train": Listed([_problem(place) for place in range(len(QUESTIONS))])}, _grade)
