"""Every command and every Python block of the README runs."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.M | re.S)


def commands():
    for block in blocks("bash"):
        for line in block.replace("\\\n", " ").splitlines():
            if line.strip() and not line.lstrip().startswith("#"):
                yield line.strip()


@pytest.fixture(scope="module")
def user(tmp_path_factory, smollm2_path):
    """A user's folder and environment: a store that already holds the default model, no network."""
    from openhearth.config import Config

    folder = tmp_path_factory.mktemp("user")
    shutil.copytree(Config.from_env().home, folder / "store", symlinks=True, copy_function=os.link,
                    ignore=shutil.ignore_patterns("partial"))
    env = dict(os.environ, HEARTH_HOME=str(folder / "store"), HEARTH_OFFLINE="1", NO_COLOR="1",
               PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    return folder, env


def test_the_two_commands_open_the_readme():
    first, second = list(commands())[:2]
    assert shlex.split(first, comments=True) == ["make", "run"]
    assert shlex.split(second, comments=True) == ["make", "test"]


def test_every_make_target_of_the_readme_exists():
    for command in commands():
        if command.startswith("make "):
            words = shlex.split(command, comments=True)
            subprocess.run([words[0], "-n", *words[1:]], cwd=ROOT, check=True, capture_output=True)


def test_every_shell_command_of_the_readme_runs(user):
    folder, env = user
    ran = 0
    for command in commands():
        if command.startswith("make "):
            continue
        done = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], cwd=folder, env=env, text=True,
                              capture_output=True, timeout=300, stdin=subprocess.DEVNULL)
        assert done.returncode == 0, f"$ {command}\n{done.stdout}\n{done.stderr}"
        ran += 1
    assert ran >= 8


def test_every_python_block_of_the_readme_runs(user):
    folder, env = user
    sources = blocks("python")
    assert sources
    for source in sources:
        done = subprocess.run([sys.executable, "-c", source], cwd=folder, env=env, text=True,
                              capture_output=True, timeout=300)
        assert done.returncode == 0, f"{source}\n{done.stderr}"
