"""Every command of docs/tune.md runs, in order; its recipe and the built-in ones are understood."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from openhearth.tune import build_settings

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "tune.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, flags=re.M | re.S)


def test_every_command_of_the_page_runs_and_the_model_learns_the_rule(tmp_path, smollm2_path):
    from openhearth.config import Config

    store = tmp_path / "store"
    for part in ("blobs", "models", "snapshots"):
        shutil.copytree(Config.from_env().home / part, store / part, symlinks=True, copy_function=os.link)
    env = dict(os.environ, HEARTH_HOME=str(store), HEARTH_OFFLINE="1", NO_COLOR="1",
               PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    printed = {}
    for command in "".join(blocks("bash")).splitlines():
        done = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], cwd=tmp_path, env=env, text=True,
                              capture_output=True, timeout=600, stdin=subprocess.DEVNULL)
        assert done.returncode == 0, f"$ {command}\n{done.stdout}\n{done.stderr}"
        printed[command] = done.stdout
    answer = next(text for command, text in printed.items() if command.startswith("hearth run "))
    assert answer.strip() == "Shoes off, tea on."
    plan = next(text for command, text in printed.items() if command.endswith("--dry-run"))
    assert "[[Shoes off, tea on.<|im_end|>]]" in plan


RECIPES = [*blocks("toml"), *(path.read_text(encoding="utf-8") for path in (ROOT / "recipes").glob("*.toml"))]


@pytest.mark.parametrize("text", RECIPES, ids=range(len(RECIPES)))
def test_every_recipe_is_understood(text):
    recipe = tomllib.loads(text)
    assert build_settings(recipe.pop("method"), recipe).model == "smollm2"
