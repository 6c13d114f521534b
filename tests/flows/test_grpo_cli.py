"""`hearth tune grpo`: it learns, survives kills bit for bit, counts failed graders, says what is wrong."""

import json
import os
import signal
import subprocess
import sys

import pytest
from support.command import environment, hearth
from support.in_process import run_main
from support.tuning import TASKS, grpo_settings_of, train_alone

from openhearth.runs import RunFolder, hash_files, read_rollouts

STEPS = 6


def arguments(folder, *more, task="letter"):
    return [str(word) for word in (
        "tune", "grpo", folder, "--task", f"{TASKS}:{task}", "--out", "run", "--steps", STEPS, "--prompts", 4,
        "--group-size", 4, "--pack-tokens", 128, "--lora-rank", 4, "--learning-rate", 5e-3,
        "--checkpoint-every", 2, "--threads", 1, *more)]


def state_of(run):
    """Outputs, kept completions and metrics but for times."""
    assert run.is_finished
    metrics = [{name: value for name, value in row.items()
                if not any(word in name for word in ("second", "per_s", "mfu"))} for row in run.metrics()]
    return hash_files(run.output), hash_files(run.path / "rollouts"), metrics


KILL = """
import ast, os, signal, sys
from pathlib import Path
stage, nth, count = sys.argv[1], int(sys.argv[2]), 0
def counted(owner, name, matches=lambda *arguments: True):
    honest = getattr(owner, name)
    def call(*arguments, **named):
        global count
        count += matches(*arguments)
        if count == nth:
            os.kill(os.getpid(), signal.SIGKILL)
        return honest(*arguments, **named)
    setattr(owner, name, call)
from openhearth import durable
from openhearth.engine.engine import Engine
from openhearth.tune import training
from openhearth.tune.loops.grpo import GrpoLoop
from openhearth.tune.optimizer import Optimizer
from support.tuning import grpo_settings_of, train_alone
if stage == "rollout": counted(Engine, "step")
if stage == "rollout file": counted(durable.os, "replace", lambda _, to: str(to).endswith("rollout.json"))
if stage == "gradients": counted(GrpoLoop, "_backward")
if stage == "update": counted(Optimizer, "step")
if stage == "checkpoint": counted(training, "write_tensors")
train_alone(Path(sys.argv[3]), grpo_settings_of(Path(sys.argv[4]), **ast.literal_eval(sys.argv[5])))
"""
KINDS = {
    "lora": ({"kl": 0.01}, [("rollout", 29), ("gradients", 3), ("checkpoint", 2)]),
    "full": ({"weights": "full", "dtype": "float32", "learning_rate": 1e-3},
             [("update", 4), ("rollout file", 2), ("rollout", 3)]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_kills_in_every_phase_end_in_the_same_bytes(tiny_folder, tmp_path, kind):
    """One run, killed again and again, each time in another phase; half of them with no checkpoint since."""
    more, kills = KINDS[kind]
    settings = {"steps": STEPS, "updates": 2, "threads": 1, **more}
    whole = train_alone(tmp_path / "whole", grpo_settings_of(tiny_folder, **settings))
    env = environment(tmp_path)
    env["PYTHONPATH"] += os.pathsep + str(TASKS.parents[1])
    for stage, nth in kills:
        done = subprocess.run([sys.executable, "-c", KILL, stage, str(nth), str(tmp_path / "cut"),
                               str(tiny_folder), repr(settings)], env=env, capture_output=True, text=True)
        assert done.returncode == -signal.SIGKILL, done.stderr
    cut = train_alone(tmp_path / "cut", grpo_settings_of(tiny_folder, **settings))
    assert state_of(cut) == state_of(whole)


def test_a_killed_command_goes_on_with_resume(tiny_folder, tmp_path):
    words = arguments(tiny_folder, "--steps", 24)
    process = subprocess.Popen([sys.executable, "-m", "openhearth", *words], env=environment(tmp_path),
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    next((line for line in process.stderr if line.startswith("step 1/")), None)
    process.send_signal(signal.SIGKILL)
    process.stderr.read()
    assert process.wait() == -signal.SIGKILL
    again = hearth(*words, home=tmp_path, check=False)
    assert again.returncode == 2 and "--resume" in again.stderr
    hearth(*words, "--resume", home=tmp_path)
    run = RunFolder(tmp_path, "run")
    assert run.is_finished and [row["step"] for row in run.metrics()] == list(range(1, 25))


@pytest.fixture
def tune(capfd, tmp_path, monkeypatch):
    """Run the command in this process."""
    for name, value in environment(tmp_path, HEARTH_OFFLINE="1").items():
        monkeypatch.setenv(name, value)
    return lambda *words: run_main(capfd, *words)


def test_a_tiny_random_model_learns_what_is_rewarded(tune, tiny_folder, tmp_path):
    words = arguments(tiny_folder, "--steps", 40, "--learning-rate", 0.01, "--prompts", 8, "--group-size", 8,
                      "--threads", 2, "--json")
    done = tune(*words)
    assert done.code == 0, done.err
    result = json.loads(done.out)["receipt"]["result"]
    assert result["first_reward"] < 0.5 and result["last_reward"] > 0.9, result
    scores = {}
    for name, model in (("before", [tiny_folder]), ("after", [tiny_folder, "--adapter", "run"])):
        told = [tune("run", *model, f"item {number}", "--temperature", "1", "--seed", number, "--quiet",
                     "--max-tokens", 8).out for number in range(6)]
        scores[name] = sum("e" in text for text in told)
    assert scores["after"] >= 5 > scores["before"], scores


def test_failed_graders_are_counted_and_left_out(tune, tiny_folder, tmp_path):
    done = tune(*arguments(tiny_folder, "--steps", 2, task="failing"))
    assert done.code == 0 and "graders failed" in done.err
    run = RunFolder(tmp_path, "run")
    rows = run.metrics()
    assert all(row["failed_graders"] > 0 for row in rows)
    record = json.loads((run.path / "rollout.json").read_bytes())
    every = [one for group in record["groups"] for one in group]
    failed = [one for one in every if one["verdict"] == "grader_failed"]
    assert len(failed) == rows[-1]["failed_graders"] and all(one["reward"] is None for one in failed)
    graded = [one["reward"] for one in every if one["reward"] is not None]
    assert rows[-1]["reward"] == pytest.approx(sum(graded) / len(graded)), "never counted as 0"


def test_every_step_keeps_completions_with_their_verdicts(tune, tiny_folder, tmp_path):
    assert tune(*arguments(tiny_folder, "--steps", 2)).code == 0
    run = RunFolder(tmp_path, "run")
    for step in (1, 2):
        rows = read_rollouts(run, step)
        assert len(rows) == 2 * 4 and {row.step for row in rows} == {step}
        assert all(row.prompt and row.verdict in ("correct", "wrong", "no_answer") for row in rows)
    page = (run.path / "index.html").read_text()
    for curve in ("reward", "pass_rate", "entropy", "ratio_max_difference", "rollout_tokens_per_s"):
        assert f"<h2>{curve}</h2>" in page
    assert "<summary>step 2: " in page and list((run.path / "tensorboard").iterdir())
    listed = tune("runs", "list").out
    assert "grpo" in listed and "reward" in listed
    assert "reward" in tune("runs", "show", "run").out


def test_a_dry_run_shows_prompts_memory_and_time(tune, tiny_folder, tmp_path):
    shown = tune(*arguments(tiny_folder, "--dry-run"))
    assert shown.code == 0 and not (tmp_path / "runs").exists()
    assert "<|im_start|>user\nitem " in shown.out and "answer `e`" in shown.out
    assert ", rollouts " in shown.out and "time " in shown.out and "of the paper of dapo" in shown.out
    record = json.loads(tune(*arguments(tiny_folder, "--dry-run", "--json")).out)
    assert record["num_steps"] == STEPS and record["cache_bytes"] > 0 and record["seconds"] > 0


def test_a_recipe_of_two_tasks_with_a_curriculum_runs(tune, tiny_folder, tmp_path):
    recipe = tmp_path / "mixed.toml"
    recipe.write_text(f'method = "grpo"\nmodel = "{tiny_folder}"\nout = "mixed"\nsteps = 3\nprompts = 4\n'
                      f'task = ["{TASKS}:letter", "{TASKS}:slow"]\ncurriculum = 0.01\ntop_p = 0.9\n'
                      'group_size = 4\nloss = "gspo"\noverlong = "mask"\n')
    assert tune("tune", recipe).code == 0
    assert [row["level"] for row in RunFolder(tmp_path, "mixed").metrics()] == [0, 1, 1]


@pytest.mark.parametrize("more, code, told", [
    (["--loss", "dapa"], 2, "dapo"),
    (["--group-size", "1"], 2, "expected 2 or more"),
    (["--task", "chain_smu"], 2, "chain_sum"),
    (["--max-tokens", "5000"], 2, "the model's context is 512"),
    (["--base", "int4", "--weights", "full"], 2, "quantised weights are frozen"),
    (["--data", "a.jsonl"], 2, "there is no setting `data`"),
    (["--updates", "9"], 2, "no more updates than prompts"),
    (["--temperature", "0"], 2, "above 0"),
])
def test_wrong_settings_are_refused_with_what_would_work(tune, tiny_folder, more, code, told):
    done = tune(*arguments(tiny_folder, *more), "--dry-run")
    assert done.code == code and told in done.err, done.err


def test_a_run_is_not_resumed_as_another(tune, tiny_folder, tmp_path):
    words = arguments(tiny_folder, "--steps", 1)
    assert tune(*words).code == 0
    (tmp_path / "runs" / "run" / "receipt.json").unlink()
    other = tune(*words, "--resume", "--temperature", "0.5")
    assert other.code == 2 and "another temperature" in other.err
    data = tmp_path / "a.jsonl"
    data.write_text('{"prompt": "a", "completion": "b"}\n')
    sft = tune("tune", "sft", tiny_folder, "--data", data, "--out", "run", "--resume")
    assert sft.code == 2 and "is one of grpo" in sft.err
    assert tune(*words, "--resume").code == 0
