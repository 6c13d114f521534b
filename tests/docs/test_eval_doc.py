"""Every command and the Python block of docs/eval.md run."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from support.command import environment

from openhearth.tasks import find, list_names

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "eval.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, flags=re.M | re.S)


def commands():
    return [line for block in blocks("bash") for line in block.splitlines()]


@pytest.mark.parametrize("command", commands())
def test_command_runs(command, tmp_path, smollm2_path):
    words = shlex.split(command)
    assert words[:3] == ["hearth", "eval", "smollm2"]
    words[2] = str(smollm2_path)
    done = subprocess.run([sys.executable, "-m", "openhearth", *words[1:]], cwd=tmp_path, text=True,
                          env=environment(tmp_path / "home", HEARTH_OFFLINE="1"), capture_output=True,
                          timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_there_are_commands():
    assert len(commands()) >= 3


def test_the_python_block_is_a_task(tmp_path):
    [source] = blocks("python")
    path = tmp_path / "mine.py"
    path.write_text(source)
    task = find(f"{path}:doubles")
    problem = task.problem("test", 0)
    assert task.grade(problem, problem.answer).passed


def test_the_page_names_every_built_in_task():
    for name in list_names():
        assert f"`{name}" in TEXT, name
