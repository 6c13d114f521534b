"""Worked answers: right by the task's own grader, step by step, and only of training problems as data."""

import json
import re

import pytest
from support.tuning import config_of

from openhearth.errors import UsageError
from openhearth.tasks import find
from openhearth.tasks.worked import worked_sum
from openhearth.tune.data.sources import find_files

NAME = "chain_sum:min_terms=4:max_terms=5:min_digits=2"


def test_running_totals_by_hand():
    question = "State the final answer to the following arithmetic problem: 12 + 30 - 52 - 5 ="
    assert worked_sum(question) == "12 + 30 = 42\n42 - 52 = -10\n-10 - 5 = -15"
    assert worked_sum("What is the capital of France?") == ""


def test_every_worked_answer_is_right_and_every_line_of_it():
    pytest.importorskip("reasoning_gym")
    task = find(NAME)
    for index in range(100):
        problem = task.problem("train", index)
        assert task.grade(problem, problem.worked).passed, problem
        for line in problem.worked.splitlines():
            left, sign, right, total = re.fullmatch(r"(-?\d+) ([+-]) (\d+) = (-?\d+)", line).groups()
            assert int(left) + int(sign + right) == int(total), line


def test_a_task_is_data_of_training_problems_only(tmp_path):
    pytest.importorskip("reasoning_gym")
    config = config_of(tmp_path)
    [path] = find_files([f"task:40:{NAME}"], config)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    asked = {row["prompt"][-1]["content"] for row in rows}
    task = find(NAME)
    held_out = {task.problem("test", index).messages[-1]["content"] for index in range(200)}
    assert len(asked) == 40 and not asked & held_out
    assert all(row["completion"][0]["content"].count("\n") >= 2 for row in rows)
    assert find_files([f"task:40:{NAME}"], config) == [path], "the same rows, the same file"


@pytest.mark.parametrize("text, told", [
    ("task:chain_sum", "how many rows"), ("task:0:chain_sum", "how many rows"),
    ("task:5:gcd", "5 of 5 problems of `gcd` have no worked answer"),
    ("task:5:chain_smu", "there is no task"),
])
def test_what_gives_no_rows_is_refused(tmp_path, text, told):
    pytest.importorskip("reasoning_gym")
    with pytest.raises(UsageError, match=told):
        find_files([text], config_of(tmp_path))


def test_shots_stand_before_every_question_and_are_asked_nowhere():
    plain, shown = (find(f"chain_sum:max_digits=1{more}") for more in ("", ":shots=3"))
    for split in ("train", "test"):
        for index in range(20):
            *turns, asked = shown.problem(split, index).messages
            assert [turn["role"] for turn in turns] == ["user", "assistant"] * 3 and asked["role"] == "user"
            examples = turns[::2]
            assert asked not in examples
    known = [plain.problem("train", index) for index in range(3)]
    assert examples == [one.messages[-1] for one in known]
    assert [turn["content"] for turn in turns[1::2]] == [one.worked for one in known]
    assert [shown.problem("test", index).messages[-1] for index in range(20)] == [
        plain.problem("test", index).messages[-1] for index in range(20)]


@pytest.mark.parametrize("ref", ["chain_sum:shots=-1", "gcd:shots=1", "chain_sum:style=think:shots=1"])
def test_shots_without_worked_answers_are_refused(ref):
    with pytest.raises(UsageError, match="shots="):
        find(ref)
