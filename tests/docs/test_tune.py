"""Every command of docs/tune.md runs, in order; its recipe and the built-in ones are understood."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.tuning import write_jsonl

from openhearth.config import Config
from openhearth.models import AdapterWeights
from openhearth.models.adapter_files import write_adapter
from openhearth.runs import RunFolder
from openhearth.tune import build_chain, build_settings, open_model, plan_chain, prepare, read_recipe

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "tune.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, flags=re.M | re.S)


def test_every_command_of_the_page_runs_and_the_model_learns_the_rule(tmp_path, smollm2_path):
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
    if "stage" in recipe:
        assert all(stage.settings.model == "smollm2" for stage in build_chain(recipe, {}).stages)
    else:
        assert build_settings(recipe.pop("method"), recipe).model == "smollm2"


def test_the_recipes_for_the_default_model_are_planned(tmp_path, smollm2_path):
    """Dry runs of the built-in ones, from two rows of what a user brings."""
    config = Config.from_env()
    store = tmp_path / "store"
    for part in ("blobs", "models", "snapshots"):
        shutil.copytree(config.home / part, store / part, symlinks=True, copy_function=os.link)
    folder = shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    for split in ("train", "test"):
        write_jsonl(folder / f"gsm8k_{split}.jsonl", [{"question": "1 + 1?", "answer": "2\n#### 2"}] * 2)
    config = replace(config, home=store)
    for name in ("gsm8k_lora", "distill_chain_sum", "chain_sum"):
        recipe = read_recipe(folder / f"{name}.toml")
        settings = build_settings(recipe.pop("method"), recipe)
        if name == "distill_chain_sum":
            write_teacher(RunFolder(store, settings.teacher_adapter), settings.model, config)
        job = prepare(settings, config)
        assert job.plan.memory.total_bytes > 2**30 and job.plan.num_steps > 0
        assert name != "gsm8k_lora" or len(job.work.held_out.samples) == 2
    jobs = plan_chain(build_chain(read_recipe(folder / "r1.toml"), {}), config)
    assert [job.work.name for job in jobs] == ["sft", "grpo", "distill", "grpo"]
    assert len(jobs[0].work.training.samples) == 2000



def write_teacher(run, model, config):
    """Leave an adapter that changes nothing where a finished run would."""
    run.output.mkdir(parents=True)
    opened = open_model(model, config)
    width = opened.spec.hidden_size
    pairs = {"model.layers.0.self_attn.o_proj": (torch.zeros(16, width), torch.zeros(width, 16))}
    write_adapter(run.output, AdapterWeights(pairs, 2.0), rank=16, alpha=32.0, is_rank_stabilised=False,
                  base_model=model, base_weights_sha256=opened.stored.weights_sha256)
    run.write_config({"method": "grpo"})
    run.write_receipt({})
