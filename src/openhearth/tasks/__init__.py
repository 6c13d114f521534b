"""Problems and graders: one function is the reward of training and the score of evaluation."""

from openhearth.tasks.finding import find, list_names
from openhearth.tasks.grading import Grading
from openhearth.tasks.naming import TaskRef, parse_task
from openhearth.tasks.records import (
    NOW,
    SPLITS,
    Grader,
    Problem,
    Problems,
    Split,
    Task,
    Verdict,
    correct,
    grader_failed,
    no_answer,
    wrong,
)
from openhearth.tasks.splits import Generated, Listed, split_of

__all__ = [
    "NOW",
    "SPLITS",
    "Generated",
    "Grader",
    "Grading",
    "Listed",
    "Problem",
    "Problems",
    "Split",
    "Task",
    "TaskRef",
    "Verdict",
    "correct",
    "find",
    "grader_failed",
    "list_names",
    "no_answer",
    "parse_task",
    "split_of",
    "wrong",
]
