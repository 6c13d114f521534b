"""Which problem belongs to which split, and in which order.

A question's text alone decides its split, so that training and test problems stay disjoint whatever
seeds, options or sizes two runs were given, also where a generator repeats itself.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable, Sequence

from openhearth.errors import UsageError
from openhearth.tasks.records import Problem, Split

_TEST_SHARE = 64  # of 256: one question in four is for testing
_MAX_RUN = 20_000
"""Generated problems in a row that may miss a split before the generator counts as exhausted."""


def split_of(question: str) -> Split:
    """Return the split a question belongs to: one in four is ``test``. White space does not matter."""
    digest = hashlib.sha256(" ".join(question.split()).encode("utf-8", "surrogatepass")).digest()
    return "test" if digest[0] < _TEST_SHARE else "train"


class Generated:
    """One split of an endless generator: its problems that belong there, in the generator's order.

    make: index of the generator -> (question, problem). Repeated questions are left out, and those in
    without. Looking at problem n makes all problems before it, once.
    """

    num_problems: int | None = None
    """None until the generator has run out."""

    def __init__(self, make: Callable[[int], tuple[str, Problem]], split: Split, *,
                 without: Iterable[str] = ()) -> None:
        self._make = make
        self._split = split
        self._found: list[Problem] = []
        self._seen = set(without)
        self._next = 0
        self._lock = threading.Lock()

    def __getitem__(self, index: int) -> Problem:
        with self._lock:
            num_missed = 0
            while len(self._found) <= index:
                try:
                    question, problem = self._make(self._next)
                except IndexError as error:
                    raise self._exhausted("the generator has no more") from error
                self._next += 1
                if split_of(question) == self._split and question not in self._seen:
                    self._seen.add(question)
                    self._found.append(problem)
                    num_missed = 0
                    continue
                num_missed += 1
                if num_missed > _MAX_RUN:
                    raise self._exhausted(f"{_MAX_RUN} more were made and none was new")
            return self._found[index]

    def _exhausted(self, why: str) -> UsageError:
        self.num_problems = len(self._found)
        return UsageError(f"there are only {len(self._found)} different `{self._split}` problems", why=why,
                          hint="ask for fewer, or make the task's options wider")


class Listed:
    """A fixed list of problems in an order that the seed decides."""

    def __init__(self, problems: Sequence[Problem], seed: int = 0) -> None:
        self._problems = sorted(problems, key=lambda problem: hashlib.sha256(
            f"{seed}/{problem.id}".encode()).digest())
        self.num_problems: int | None = len(self._problems)

    def __getitem__(self, index: int) -> Problem:
        return self._problems[index]
