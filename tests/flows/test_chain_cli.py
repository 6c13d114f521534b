"""Recipes of several stages: one run, killed anywhere and resumed to the same bytes; shown, and refused."""

import itertools
import json
import signal
import subprocess
import sys

import pytest
from support.command import environment
from support.in_process import run_main
from support.tuning import TASKS, write_jsonl

from openhearth.models.adapter_files import read_adapter
from openhearth.runs import RunFolder, find_output, hash_file, hash_files

STAGES = ["1-sft", "2-grpo", "3-distill", "4-grpo"]
RECIPE = """
model = "{model}"
out = "chain"
task = "{task}:letter"
lora_rank = 4
threads = 1
group_size = 4
learning_rate = 5e-3
checkpoint_every = 2

[[stage]]
method = "sft"
data = "cold.jsonl"
batch_size = 4
steps = 20
learning_rate = 2e-2

[[stage]]
method = "grpo"
prompts = 4
steps = 4

[[stage]]
method = "distill"
prompts = 32
batch_size = 4
steps = 4

[[stage]]
method = "grpo"
prompts = 4
steps = 4
seed = 1
kl = 0.05
"""


@pytest.fixture
def recipe(tiny_folder, tmp_path):
    write_jsonl(tmp_path / "cold.jsonl", [
        {"prompt": f"item {number}", "completion": "me"} for number in range(12)])
    path = tmp_path / "chain.toml"
    path.write_text(RECIPE.format(model=tiny_folder, task=TASKS))
    return path


@pytest.fixture
def tune(capfd, tmp_path, monkeypatch):
    """Run the command in this process."""
    for name, value in environment(tmp_path, HEARTH_OFFLINE="1").items():
        monkeypatch.setenv(name, value)
    return lambda *words: run_main(capfd, *words)


def state_of(home):
    """Outputs of the chain and of every stage, and metrics but for times."""
    run = RunFolder(home, "chain")
    assert run.is_finished
    found = {"": hash_files(run.output)}
    for stage in run.stages():
        metrics = [{name: value for name, value in row.items()
                    if not any(word in name for word in ("second", "per_s", "mfu"))}
                   for row in stage.metrics()]
        found[stage.name] = (hash_files(stage.output), metrics)
    return found


KILL = """
import os, signal, sys
place, nth, count = sys.argv.pop(1), int(sys.argv.pop(1)), 0
def counted(owner, name, matches=lambda *arguments, **named: True):
    honest = getattr(owner, name)
    def call(*arguments, **named):
        global count
        count += bool(matches(*arguments, **named))
        if count == nth:
            os.kill(os.getpid(), signal.SIGKILL)
        return honest(*arguments, **named)
    setattr(owner, name, call)
from openhearth.engine.engine import Engine
from openhearth.tune import chain, teaching
from openhearth.tune.optimizer import Optimizer
if place == "update": counted(Optimizer, "step")
if place == "rollout": counted(Engine, "step")
if place == "before a stage": counted(chain, "prepare", lambda *_, **named: "resumed" in named)
if place == "teacher": counted(teaching, "_answer")
if place == "end": counted(chain, "hash_files")
from openhearth.cli import main
main(sys.argv[1:])
"""
KILLS = [("update", 3), ("before a stage", 2), ("rollout", 20), ("teacher", 100), ("update", 3),
         ("rollout", 20), ("end", 1)]


def test_a_chain_killed_in_and_between_stages_ends_in_the_same_bytes(tune, recipe, tmp_path):
    """One chain, killed again and again."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    words = ["tune", str(recipe)]
    done = subprocess.run([sys.executable, "-m", "openhearth", *words], env=environment(whole),
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    finished = []
    for place, nth in KILLS:
        done = subprocess.run([sys.executable, "-c", KILL, place, str(nth), *words, "--resume"],
                              env=environment(cut), capture_output=True, text=True)
        assert done.returncode == -signal.SIGKILL, f"{place}: {done.stderr}"
        finished.append(sum(stage.is_finished for stage in RunFolder(cut, "chain").stages()))
    assert finished == [0, 1, 1, 2, 2, 3, 4]
    done = subprocess.run([sys.executable, "-m", "openhearth", *words, "--resume"], env=environment(cut),
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert state_of(cut) == state_of(whole)


@pytest.fixture
def finished(tune, recipe):
    done = tune("tune", recipe, "--steps", 2, "--prompts", 16)
    assert done.code == 0, done.err
    return done


def test_every_stage_goes_on_from_the_adapter_before_it_and_receipts_say_so(finished, tune, tmp_path):
    run = RunFolder(tmp_path, "chain")
    receipt, stages = run.receipt(), run.stages()
    assert [stage.name for stage in stages] == [f"chain:{name}" for name in STAGES]
    assert [one["receipt_sha256"] for one in receipt["stages"]] == [
        hash_file(stage.path / "receipt.json") for stage in stages]
    assert "adapter_sha256" not in stages[0].receipt()["base"]
    for before, stage in itertools.pairwise(stages):
        begun_with = read_adapter(before.output)
        assert stage.receipt()["base"]["adapter_sha256"] == begun_with.sha256
        assert stage.receipt()["base"]["weights_sha256"] == receipt["base"]["weights_sha256"]
        left = read_adapter(stage.output)
        assert left.weights.pairs.keys() == begun_with.weights.pairs.keys()
        moved = max(float((b - left.weights.pairs[path][1]).abs().max())
                    for path, (_, b) in begun_with.weights.pairs.items())
        assert 0 < moved < 0.1, "learned on from there"
    assert receipt["outputs"] == hash_files(run.output) == stages[-1].receipt()["outputs"]
    assert find_output(tmp_path, "chain") == run.output and find_output(tmp_path, "chain:2-grpo").is_dir()
    assert stages[2].read("teacher.json")["adapter"] == read_adapter(stages[1].output).sha256
    assert all(row["ratio_max_difference"] == 0 for place in (1, 3) for row in stages[place].metrics())
    assert stages[3].metrics()[0]["kl"] == 0, "compared with the adapter that the stage began from"
    # What people see.
    shown = tune("runs", "show", "chain").out
    assert all(name in shown for name in STAGES) and "finished" in shown
    assert "adapter" in tune("runs", "show", "chain:2-grpo").out
    listed = tune("runs", "list").out
    assert "chain" in listed and "chain:1-sft" not in listed
    page = (run.path / "index.html").read_text()
    assert "4 of 4 stages finished" in page and "<h2>2-grpo: grpo</h2>" in page
    assert 'href="stages/2-grpo/index.html"' in page and "<h2>reward</h2>" in page
    assert "grpo" in finished.out and "reward" in finished.out
    again = tune("tune", tmp_path / "chain.toml", "--steps", 2, "--prompts", 16, "--resume")
    assert again.code == 0 and "is finished" in again.err


def test_a_dry_run_shows_every_stage(tune, recipe, tmp_path):
    shown = tune("tune", recipe, "--dry-run")
    assert shown.code == 0 and not (tmp_path / "runs").exists()
    for name in STAGES:
        assert f"== {name}, from " in shown.out
    assert shown.out.count("memory ") == 4 and shown.out.count("time ") == 4
    assert "[[me<|im_end|>]]" in shown.out and "<|im_start|>user\nitem " in shown.out
    assert "4 stages: " in shown.out
    record = json.loads(tune("tune", recipe, "--dry-run", "--json").out)
    assert [stage["name"] for stage in record["stages"]] == STAGES
    assert all(stage["memory_bytes"]["total"] > 0 < stage["flops"] for stage in record["stages"])


@pytest.mark.parametrize("old, new, told", [
    ("prompts = 4\nsteps = 4\n\n[[stage]]", "promts = 4\n\n[[stage]]", "stage 2 (grpo): there is no setting"),
    ("prompts = 4\nsteps = 4\n\n[[stage]]", "promts = 4\n\n[[stage]]", "did you mean `prompts`?"),
    ("lora_rank = 4", "lora_rnak = 4", "did you mean `lora_rank`?"),
    ("seed = 1", "lora_rank = 8", "all stages share it"),
    ("seed = 1", 'start_adapter = "x"', "goes on from the one before"),
    ('method = "distill"', 'method = "distil"', "has method `distil`"),
    ("lora_rank = 4", 'weights = "full"', "a stage goes on from an adapter"),
    ("kl = 0.05", "kl = -1", "stage 4 (grpo): kl is `-1"),
    ('out = "chain"', "", "out must be said"),
])
def test_what_a_chain_cannot_do_is_said_before_anything_runs(tune, recipe, tmp_path, old, new, told):
    text = recipe.read_text()
    assert old in text
    recipe.write_text(text.replace(old, new))
    done = tune("tune", recipe)
    assert done.code == 2 and told in done.err, done.err
    assert not (tmp_path / "runs").exists()


def test_a_chain_is_resumed_only_as_it_began(tune, recipe, finished, tmp_path):
    words = ("tune", recipe, "--steps", 2, "--prompts", 16)
    done = tune(*words)
    assert done.code == 2 and "--resume" in done.err
    run = RunFolder(tmp_path, "chain")
    (run.path / "receipt.json").unlink()
    other = tune(*words, "--resume", "--learning-rate", 1e-3)
    assert other.code == 2 and "stage 1-sft of the run `chain` began with another learning_rate" in other.err
    assert tune("tune", "grpo", "x", "--task", "y", "--out", "chain:2-grpo").code == 2
    (run.stage("1-sft").path / "receipt.json").unlink()
    write_jsonl(tmp_path / "cold.jsonl", [{"prompt": "a", "completion": "b"}])
    changed = tune(*words, "--resume")
    assert changed.code == 2 and "changed since" in changed.err


@pytest.mark.parametrize("more, told", [
    ({}, ""), ({"lora_rank": 8}, "lora_rank is `8`, that of `chain:1-sft` is `4`"),
    ({"lora_alpha": 99.0}, "scale is `24.75`"), ({"weights": "full"}, "start_adapter with weights `full`"),
])
def test_a_single_run_goes_on_from_an_adapter(tune, recipe, finished, tiny_folder, tmp_path, more, told):
    lines = {"method": "sft", "model": str(tiny_folder), "data": "cold.jsonl", "out": "more", "steps": 1,
             "start_adapter": "chain:1-sft", **more}
    single = tmp_path / "single.toml"
    single.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in lines.items()))
    done = tune("tune", single)
    assert told in done.err and done.code == (2 if told else 0), done.err
    if not told:
        assert "that of `chain:1-sft`" in done.err
        base = RunFolder(tmp_path, "more").receipt()["base"]
        assert base["adapter_sha256"] == read_adapter(find_output(tmp_path, "chain:1-sft")).sha256
