"""What tasks, graders, training and evaluation hand each other.

The verdict that a grader returns is the reward of training and the score of evaluation; there is no
second function for either.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, Protocol

from openhearth.errors import UsageError

Split = Literal["train", "test"]
VerdictKind = Literal["correct", "wrong", "no_answer", "grader_failed"]
SPLITS: tuple[Split, ...] = ("train", "test")
NOW = datetime(2026, 1, 1)
"""Templates that write the date write this one, so that a problem's prompt is the same every day."""


@dataclass(frozen=True)
class Problem:
    """One question, with what a grader needs to judge an answer to it.

    id: unique within the task, the same in every run. messages: the conversation to answer. answer: the
    reference, as text. metadata: JSON values for the grader (tests, a schema, where it came from). worked: an
    answer with its steps, as a model should write it; empty where the task has none.
    Example: ``Problem("sum/0", ({"role": "user", "content": "4 - 1 ="},), "3", split="test")``.
    """

    id: str
    messages: tuple[Mapping[str, str], ...]
    answer: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    split: Split = "test"
    worked: str = ""


@dataclass(frozen=True)
class Verdict:
    """What a grader says about one response.

    reward: 0 to 1; None when the grader failed, so that its failure is never taken for a wrong answer.
    reason: one line for people, the same in every run. Raises UsageError when kind and reward do not
    fit. Example: ``Verdict("wrong", 0.0, "got 4, expected 3")``.
    """

    kind: VerdictKind
    reward: float | None
    reason: str = ""

    def __post_init__(self) -> None:
        if (self.kind == "grader_failed") != (self.reward is None):
            raise UsageError(f"verdict `{self.kind}` with reward `{self.reward}`",
                             why="a failed grader has no reward (None); every other verdict has one")
        if self.reward is not None and not 0 <= self.reward <= 1:
            raise UsageError(f"reward `{self.reward}` is out of range", why="expected 0 to 1")

    @property
    def passed(self) -> bool:
        """Whether the response was right."""
        return self.kind == "correct"


def correct(reason: str = "") -> Verdict:
    """Return full marks."""
    return Verdict("correct", 1.0, reason)


def wrong(reason: str, reward: float = 0.0) -> Verdict:
    """Return a wrong answer, with part of the reward where a grader gives some."""
    return Verdict("wrong", reward, reason)


def no_answer(reason: str) -> Verdict:
    """Return a response in which nothing could be graded."""
    return Verdict("no_answer", 0.0, reason)


def grader_failed(reason: str) -> Verdict:
    """Return that the grader itself failed: the response was neither right nor wrong."""
    return Verdict("grader_failed", None, reason)


Grader = Callable[[Problem, str], Verdict]
"""(problem, text of the response) -> verdict; may raise, which is a failed grader."""


class Problems(Protocol):
    """The problems of one split, by index: the same index is the same problem in every run."""

    num_problems: int | None
    """None: as many as one asks for."""

    def __getitem__(self, index: int) -> Problem: ...


@dataclass(frozen=True)
class Task:
    """Problems of disjoint splits and the grader of their answers.

    name: as `find` takes it, options included; another process finds the same task by it. None for one
    that was put together in code. source: what the problems and the grader came from (package and
    version, hash of a file), for receipts. max_tokens: a completion length that leaves room to think.
    Example: ``Task("mine.py:sums", {"test": problems}, exact(), source="sha256:...")``.
    """

    name: str | None
    splits: Mapping[Split, Problems]
    grader: Grader
    source: str = ""
    max_tokens: int = 512

    def num_problems(self, split: Split) -> int | None:
        """Return how many problems a split has; None for no end. Raises: UsageError, as `problem`."""
        return self._split(split).num_problems

    def problem(self, split: Split, index: int) -> Problem:
        """Return one problem. Raises: UsageError for a split or an index that the task does not have."""
        problems = self._split(split)
        count = problems.num_problems
        if index < 0 or (count is not None and index >= count):
            raise UsageError(f"problem {index} of split `{split}` does not exist",
                             why=f"`{self.name}` has {count} there, counted from 0")
        return problems[index]

    def grade(self, problem: Problem, response: str) -> Verdict:
        """Judge a response here and now; an exception of the grader becomes its own verdict.

        Does not limit the time: `grading.Grading` does.
        """
        try:
            return self.grader(problem, response)
        except Exception as error:
            return grader_failed(f"{type(error).__name__}: {error}"[:300])

    def _split(self, split: Split) -> Problems:
        if split not in self.splits:
            raise UsageError(f"task `{self.name}` has no `{split}` problems",
                             why=f"it has: {', '.join(sorted(self.splits))}",
                             hint=f"--split {min(self.splits)}")
        return self.splits[split]
