"""Which problems a step asks: from one task, from several by weight, or from easy to hard."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from openhearth.errors import UsageError
from openhearth.tasks import Problem, Task
from openhearth.tune.data.order import Order


class Mixture:
    """Training problems of some tasks, in an order that a resumed run repeats.

    Every task's problems are asked one after the other, a listed task's shuffled by the seed and again for
    every pass. weights: how often each task is drawn; empty for equally often. curriculum: only the first
    task is drawn until that share of its answers in a step is right, then the next is added; the newest one
    gets half of the problems. Example: ``Mixture([find("chain_sum")], seed=0).take(0, 8)``.
    """

    def __init__(self, tasks: Sequence[Task], *, seed: int, weights: Sequence[float] = (),
                 curriculum: float | None = None) -> None:
        self.tasks, self.seed, self.curriculum = tuple(tasks), seed, curriculum
        self._weights = list(weights) or [1.0] * len(self.tasks)
        self._positions = [0] * len(self.tasks)
        self._orders: dict[int, Order] = {}
        self.level = 0 if curriculum is not None else len(self.tasks) - 1

    def take(self, step: int, count: int) -> list[tuple[int, Problem]]:
        """Return the problems of a step, each with its task's place. Raises: UsageError, as the task."""
        weights = self._weights[:self.level + 1]
        if self.curriculum is not None and self.level > 0:
            weights[-1] = float(self.level)
        chosen = random.Random(f"{self.seed}/{step}").choices(range(len(weights)), weights, k=count)
        return [(place, self._next(place)) for place in chosen]

    def note(self, pass_rates: Sequence[float | None]) -> None:
        """Take the share of right answers of each task in a step, None where it was not asked."""
        newest = pass_rates[self.level]
        if self.curriculum is not None and newest is not None and newest >= self.curriculum:
            self.level = min(self.level + 1, len(self.tasks) - 1)

    def state(self) -> dict[str, Any]:
        """Return where the mixture stands, as JSON values."""
        return {"positions": list(self._positions), "level": self.level}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self._positions, self.level = list(state["positions"]), state["level"]

    def _next(self, place: int) -> Problem:
        position, task = self._positions[place], self.tasks[place]
        self._positions[place] += 1
        if task.num_problems("train") is None:
            try:
                return task.problem("train", position)
            except UsageError:
                if not task.num_problems("train"):  # not because its generator ran out
                    raise
        count = task.num_problems("train")
        order = self._orders.setdefault(place, Order(count, seed=self.seed))
        return task.problem("train", order.take(position, 1)[0])
