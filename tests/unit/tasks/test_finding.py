"""From a name to a task."""

import importlib
import json

import pytest

from openhearth.errors import BadFile, UsageError
from openhearth.tasks import TaskRef, find, list_names, parse_task, reasoning_gym
from openhearth.tasks.tags import last_number, tagged_answer

MINE = """
from openhearth.tasks import Listed, Problem, Task, correct, wrong

def grade(problem, response):
    return correct() if problem.answer in response else wrong("no")

def make(count=3, word="a"):
    problems = [Problem(f"{word}/{i}", ({"role": "user", "content": f"Say {i}"},), str(i))
                for i in range(count)]
    return Task(None, {"test": Listed(problems)}, grade, source="mine 1")

fixed = make()
number = 3
"""


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    return path


@pytest.mark.parametrize("text,expected", [
    ("chain_sum", TaskRef("chain_sum", None, {})),
    ("reasoning-gym:gcd:seed=3", TaskRef("reasoning-gym", "gcd", {"seed": 3})),
    ("a:x=1.5:y=true:z=yes:w=01", TaskRef("a", None, {"x": 1.5, "y": True, "z": "yes", "w": "01"})),
    ("gsm8k:path=C:\\data:seed=1", TaskRef("gsm8k", None, {"path": "C:\\data", "seed": 1})),
    ("a/b.py:name", TaskRef("a/b.py", "name", {})),
])
def test_references(text, expected):
    assert parse_task(text) == expected
    assert parse_task(str(expected)) == expected


@pytest.mark.parametrize("name,said", [
    ("", "names no task"), ("chain_sun", "chain_sum"), ("a:b:c", "no option"), ("a:x=1:x=2", "twice"),
    ("reasoning-gym", "not complete"), ("reasoning-gym:chain_sun", "chain_sum"), ("chain_sum:what=1", "what"),
    ("chain_sum:max_terms=1", "refuses"), ("chain_sum:style=loud", "style"), ("gsm8k", "path"),
    ("gsm8k:path=/nowhere", "cannot be read"), ("bbh", "path"), ("nowhere.py:x", "no file"),
])
def test_wrong_names_are_refused_with_what_would_work(name, said):
    with pytest.raises(UsageError) as error:
        find(name)
    assert said in str(error.value)


def test_a_file_gives_a_task_or_a_function_that_makes_one(mine):
    task = find(f"{mine}:make:count=5:word=b")
    assert task.num_problems("test") == 5 and task.problem("test", 0).id.startswith("b/")
    assert task.source.startswith("mine 1 sha256:") and task.name == f"{mine}:make:count=5:word=b"
    assert find(f"{mine}:fixed").num_problems("test") == 3
    for name, said in ((f"{mine}:number", "no task"), (f"{mine}:missing", "no task"),
                       (f"{mine}:make:height=2", "does not fit"), (f"{mine}:fixed:count=2", "no options")):
        with pytest.raises(UsageError, match=said):
            find(name)
    with pytest.raises(UsageError, match="has no `train` problems"):
        task.problem("train", 0)
    with pytest.raises(UsageError, match="does not exist"):
        task.problem("test", 5)


def test_a_file_that_fails_is_named(tmp_path):
    (tmp_path / "bad.py").write_text("1 / 0")
    with pytest.raises(BadFile, match="ZeroDivisionError"):
        find(f"{tmp_path / 'bad.py'}:x")


def test_an_installed_package_offers_tasks_by_entry_point(tmp_path, monkeypatch, mine):
    folder = tmp_path / "offer-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: offer\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text("[openhearth.tasks]\noffered = mine:make\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    task = find("offered:count=2")
    assert task.num_problems("test") == 2 and task.source == "mine 1 offer 1.0"
    assert "offered" in list_names()


def test_gsm8k_reads_the_published_lines(tmp_path):
    rows = [{"question": f"q{i}", "answer": f"work\n#### 1,{i}00"} for i in range(5)]
    (tmp_path / "test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    more = [*rows[:2], {"question": "new", "answer": "#### 7"}]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, more)))
    task = find(f"gsm8k:path={tmp_path}")
    assert task.num_problems("test") == 5
    assert [task.problem("train", i).answer for i in range(task.num_problems("train"))] == ["7"]
    problem = task.problem("test", 0)
    assert task.grade(problem, f"\\boxed{{{problem.answer}}}").passed and "," not in problem.answer
    assert find(f"gsm8k:path={tmp_path / 'test.jsonl'}").num_problems("test") == 5
    plain = find(f"gsm8k:path={tmp_path}:style=plain")
    assert plain.problem("test", 0).messages[0]["content"] in {row["question"] for row in rows}
    assert plain.grade(problem, f"It is {problem.answer}.").passed
    (tmp_path / "test.jsonl").write_text('{"question": "q", "answer": "#### 1"}\n{"question": 3}\n')
    with pytest.raises(BadFile, match=r"test.jsonl:2: no text in `question`"):
        find(f"gsm8k:path={tmp_path}")


def test_bbh_reads_the_published_files(tmp_path):
    examples = [{"input": f"Is {i} even?\nOptions:\n- Yes\n- No", "target": "Yes" if i % 2 == 0 else "No"}
                for i in range(4)]
    (tmp_path / "even.json").write_text(json.dumps({"canary": "x", "examples": examples}))
    task = find(f"bbh:path={tmp_path}:style=direct")
    assert task.num_problems("test") == 4 and "train" not in task.splits
    problem = task.problem("test", 0)
    assert task.grade(problem, f"<answer>{problem.answer}</answer>").passed
    assert find(f"bbh:path={tmp_path}:style=plain").grade(problem, f"{problem.answer}\n").passed
    (tmp_path / "even.json").write_text("[]")
    with pytest.raises(BadFile, match="no BIG-Bench Hard file"):
        find(f"bbh:path={tmp_path}")


def test_every_data_set_of_reasoning_gym_gives_and_grades_problems(capfd):
    # More than a tenth of a second per problem, or four thousand problems at once.
    slow = {"acre", "knight_swap", "zebra_puzzles", "quantum_lock", "puzzle24", "intermediate_integration"}
    names = reasoning_gym.names()
    assert len(names) >= 100 and slow <= set(names)
    for name in sorted(set(names) - slow):
        task = find(f"reasoning-gym:{name}")
        problem = task.problem("train", 0)
        assert problem.messages[0]["content"] and json.dumps(problem.metadata)
        empty = task.grade(problem, "I do not know")
        assert (empty.kind, empty.reward) == ("no_answer", 0.0), name
        wrong = task.grade(problem, "<answer>openhearth</answer>")
        assert wrong.kind == "wrong" and wrong.reward < 0.5, (name, wrong)
        if problem.answer and name not in {"ab", "composite"}:
            right = task.grade(problem, f"<answer>{problem.answer}</answer>")
            assert right.kind == "correct", (name, right)
    assert capfd.readouterr().out == "", "a data set printed"


@pytest.mark.parametrize("response,answer", [
    ("The answer is 154.", "154"), ("71 + 83 = 154", "154"), ("15 - 43 = -28", "-28"),
    ("1,234.50", "1234.50"),
    ("x1 none", None), ("3-4", "4"), ("<think>9</think>", None), ("9</think> 8", "8")])
def test_the_last_number(response, answer):
    assert last_number(response) == answer


def test_plain_style_takes_a_tag_before_a_number():
    task = find("chain_sum")
    problem = task.problem("test", 0)
    assert task.grade(problem, f"It is {problem.answer}.").passed
    assert task.grade(problem, f"<answer>{problem.answer}</answer> and 7 more").passed
    assert task.grade(problem, "no idea").kind == "no_answer"
    assert tagged_answer("<answer> 3 </answer>") == "3"
