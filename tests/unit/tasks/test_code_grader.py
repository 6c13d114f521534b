"""Code in the sandbox: what passes, what does not, and what it cannot do."""

import os
import time

import pytest

from openhearth.tasks import Problem, Task
from openhearth.tasks.graders import sandbox
from openhearth.tasks.graders.code import code

SQUARE = [{"call": "f(2)", "expected": 4}, "assert f(3) == 9"]


def verdict(source, tests=SQUARE, *, time_s=10.0):
    response = f"Here:\n```python\n{source}\n```\n"
    return Task(None, {}, code(time_s=time_s)).grade(Problem("p", (), "", {"tests": tests}), response)


@pytest.mark.parametrize("source,kind", [
    ("def f(x):\n    return x * x", "correct"),
    ("def f(x):\n    return float(x * x)", "correct"),
    ("print('noise')\ndef f(x):\n    print(x)\n    return x * x", "correct"),
    ("import math, collections.abc, itertools, heapq\ndef f(x):\n    return math.prod([x, x])", "correct"),
    ("def f(x):\n    return x + x", "wrong"),
    ("def f(x):\n    return str(x * x)", "wrong"),
    ("def f(x:", "wrong"),
    ("import os\nos._exit(0)", "wrong"),
    ("import sys\nsys.exit(0)", "wrong"),
    ("raise KeyboardInterrupt", "wrong"),
    ("class Same:\n    def __eq__(self, other):\n        return True\ndef f(x):\n    return Same()", "wrong"),
    ("def f(x):\n    return f(x)", "wrong"),
    ("def f(x):\n    return bytearray(1 << 40)", "wrong"),
    ("def f(x):\n    return 'a' * (1 << 28)", "wrong"),
    ("import ctypes\nctypes.string_at(0)", "wrong"),
    ("import os\nfor d in range(3, 64):\n    try:\n        os.write(d, b'{\"refused\": 1}\\n')\n"
     "    except OSError:\n        pass\ndef f(x):\n    return 0", "wrong"),
])
def test_calls(source, kind):
    assert verdict(source).kind == kind


def test_truth_is_no_number():
    assert verdict("def f(x):\n    return True", [{"call": "f(1)", "expected": 1}]).kind == "wrong"


def test_a_loop_without_end_is_stopped_and_wrong():
    started = time.monotonic()
    found = verdict("def f(x):\n    while True:\n        pass", time_s=1.0)
    assert (found.kind, found.reason) == ("wrong", "f(2): not done within 1 s")
    assert time.monotonic() - started < 30


@pytest.mark.parametrize("source,kind", [
    ("n = int(input())\nprint(n * 2)", "correct"),
    ("import sys\nprint(int(sys.stdin.read()) * 2, end='')", "correct"),
    ("if __name__ == '__main__':\n    print(42)", "correct"),
    ("print(41)", "wrong"),
    ("print(42)\nraise SystemExit(3)", "wrong"),
    ("while True:\n    print('x' * 1000)", "wrong"),
])
def test_programs(source, kind):
    assert verdict(source, [{"stdin": "21\n", "stdout": "42\n"}]).kind == kind


def test_the_last_block_counts_and_prose_is_no_answer():
    task = Task(None, {}, code())
    problem = Problem("p", (), "", {"tests": SQUARE})
    good, bad = "```python\ndef f(x): return x * x\n```\n", "```python\ndef f(x): return 0\n```\n"
    assert task.grade(problem, bad + "better:\n" + good).kind == "correct"
    assert task.grade(problem, good + "worse:\n" + bad).kind == "wrong"
    assert task.grade(problem, good + "```bash\npython f.py\n```\n").kind == "correct"
    assert task.grade(problem, "def f(x): return x * x").kind == "no_answer"
    assert task.grade(problem, f"<think>{good}</think>").kind == "no_answer"


@pytest.mark.parametrize("tests", [[], ["assert f(2) == g(2)"], ["assert f(2)"], ["f(2) == 4"],
                                   [{"call": "f(2)"}]])
def test_tests_that_could_be_fooled_or_are_none_fail_the_grader(tests):
    assert verdict("def f(x):\n    return 4", tests).kind == "grader_failed"


FORBIDDEN = {
    "socket": "__import__('socket').socket()",
    "fork": "__import__('os').fork()",
    "program": "__import__('subprocess').run(['/bin/true'])",
    "signal": f"__import__('os').kill({os.getpid()}, 0)",
    "write": "open('/tmp/openhearth-sandbox', 'w')",
    "append": "open('/dev/shm/openhearth-sandbox', 'a')",
    "unnamed file": "__import__('os').open('/tmp', 0x410002)",
    "remove": "__import__('os').remove('/tmp/openhearth-sandbox-kept')",
    "folder": "__import__('os').mkdir('/tmp/openhearth-sandbox')",
    "mode": "__import__('os').chmod('/tmp', 0o777)",
    "raised limit": f"__import__('resource').prlimit({os.getpid()}, 7, (9, 9))",
    "owner of signals": f"__import__('fcntl').fcntl(0, 8, {os.getpid()})",
}


@pytest.mark.parametrize("call", FORBIDDEN.values(), ids=FORBIDDEN)
def test_the_sandbox_refuses(call):
    run = sandbox.run_calls("", [call], time_s=20)
    assert {"limits", "system calls"} <= set(run.walls)
    assert "Permission" in run.outcomes[0].error or "not permitted" in run.outcomes[0].error, run.outcomes


def test_files_of_the_user_cannot_be_read_where_the_kernel_has_landlock(tmp_path):
    secret = tmp_path / "answers.txt"
    secret.write_text("42")
    reads = [f"open({str(secret)!r}).read()", "open('/proc/self/environ').read()"]
    run = sandbox.run_calls("", reads, time_s=20)
    if "files" in run.walls:
        assert all("Permission denied" in outcome.error for outcome in run.outcomes)
    else:
        assert run.outcomes[0].value == "'42'"


def test_nothing_of_the_environment_enters(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    run = sandbox.run_calls("import os", ["sorted(os.environ)", "os.listdir('/proc/self/fd')"], time_s=20)
    assert run.outcomes[0].value is not None and "HF_TOKEN" not in run.outcomes[0].value


def test_threads_and_a_large_module_work():
    source = ("import threading\nout = []\nt = threading.Thread(target=out.append, args=(1,))\n"
              "t.start()\nt.join()\n")
    run = sandbox.run_calls(source + "x = 1\n" * 50_000, ["out", "x"], time_s=20)
    assert [outcome.value for outcome in run.outcomes] == ["[1]", "1"]


def test_the_filter_of_both_architectures_fits_its_jumps():
    from openhearth.tasks.graders import sandbox_child

    for machine in ("x86_64", "aarch64"):
        code = sandbox_child._filter(machine)
        assert len(code) < 4096 and all(len(op) == 8 for op in code)
        assert code[-1] == sandbox_child._answer(0x00050001)
