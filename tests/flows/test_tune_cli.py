"""`hearth tune`: runs, kills, resumed runs, what is printed and refused."""

import json
import random
import signal
import subprocess
import sys
import time

import pytest
from support.command import environment, hearth
from support.in_process import run_main
from support.tuning import colour_rows, write_jsonl

from openhearth.runs import RunFolder, hash_files

STEPS = 14


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_jsonl(tmp_path_factory.mktemp("data") / "train.jsonl", colour_rows())


def arguments(folder, data, *more):
    return [str(word) for word in (
        "tune", "sft", folder, "--data", data, "--out", "run", "--steps", STEPS, "--batch-size", 4,
        "--pack-tokens", 64, "--lora-rank", 4, "--checkpoint-every", 2, "--threads", 1, *more)]


def outputs(home):
    run = RunFolder(home, "run")
    assert run.is_finished
    return hash_files(run.output)


@pytest.fixture(scope="module", params=[("lora", "bfloat16"), ("full", "float32")], ids="-".join)
def kind(request):
    return ("--weights", request.param[0], "--dtype", request.param[1])


@pytest.fixture(scope="module")
def uninterrupted(tiny_folder, data, kind, tmp_path_factory):
    home = tmp_path_factory.mktemp("whole")
    hearth(*arguments(tiny_folder, data, *kind), home=home)
    return outputs(home)


def run_until_killed(words, home, delay_s):
    """Start the command, kill it delay_s after its first step; returns whether it was killed in time."""
    process = subprocess.Popen([sys.executable, "-m", "openhearth", *words], env=environment(home),
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if line.startswith("step"):
            break
    time.sleep(delay_s)
    process.send_signal(signal.SIGKILL)
    process.stderr.read()
    return process.wait() == -signal.SIGKILL


def test_killed_runs_resume_to_the_same_bytes(tiny_folder, data, kind, uninterrupted, tmp_path):
    numbers = random.Random(0)
    words = arguments(tiny_folder, data, *kind)
    killed = 0
    for _ in range(4):
        if RunFolder(tmp_path, "run").is_finished:
            break
        killed += run_until_killed([*words, "--resume"], tmp_path, numbers.random() * 0.3)
    assert killed >= 1
    hearth(*words, "--resume", home=tmp_path)
    assert outputs(tmp_path) == uninterrupted
    steps = [row["step"] for row in RunFolder(tmp_path, "run").metrics()]
    assert steps == list(range(1, STEPS + 1))


KILL_WHILE_WRITING = """
import os, signal, sys
from openhearth.models import tensor_files
from openhearth.runs import checkpoints
count, stage = 0, sys.argv.pop(1)
def counted(function, when):
    def call(*arguments, **named):
        global count
        count += stage == when
        if stage == when and count == {nth}:
            if when == "data":
                with open(arguments[0], "wb") as file:
                    file.write(b"half of it")
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **named)
    return call
from openhearth.tune import training
training.write_tensors = counted(training.write_tensors, "data")
checkpoints.hash_files = counted(checkpoints.hash_files, "manifest")
checkpoints.place_folder = counted(checkpoints.place_folder, "rename")
checkpoints.shutil.rmtree = counted(checkpoints.shutil.rmtree, "remove")
from openhearth.cli import main
main(sys.argv[1:])
"""


@pytest.mark.parametrize("stage", ["data", "manifest", "rename", "remove"])
def test_a_kill_while_a_checkpoint_is_written_loses_nothing(tiny_folder, data, uninterrupted, kind, tmp_path,
                                                            stage):
    words = arguments(tiny_folder, data, *kind, "--resume")
    done = subprocess.run([sys.executable, "-c", KILL_WHILE_WRITING.format(nth=3), stage, *words],
                          env=environment(tmp_path), capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert RunFolder(tmp_path, "run").checkpoints.newest() is not None or stage == "manifest"
    hearth(*words, home=tmp_path)
    assert outputs(tmp_path) == uninterrupted


FULL_DISK = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from openhearth.tune import training
write, count = training.write_tensors, 0
def limited(*arguments):
    global count
    count += 1
    if count == 3:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
    return write(*arguments)
training.write_tensors = limited
from openhearth.cli import main
main(sys.argv[1:])
"""


def test_a_full_disk_keeps_the_last_checkpoint_and_says_so(tiny_folder, data, kind, uninterrupted, tmp_path):
    words = arguments(tiny_folder, data, *kind, "--resume")
    done = subprocess.run([sys.executable, "-c", FULL_DISK, *words], env=environment(tmp_path),
                          capture_output=True, text=True)
    assert done.returncode == 7, done.stderr
    assert "is full" in done.stderr and "hint:" in done.stderr
    kept = RunFolder(tmp_path, "run").checkpoints.newest()
    assert kept is not None and kept.step == 4
    hearth(*words, home=tmp_path)
    assert outputs(tmp_path) == uninterrupted


def test_the_result_runs_and_says_what_it_learned(tiny_folder, tmp_path):
    data = write_jsonl(tmp_path / "few.jsonl", colour_rows(6))
    words = arguments(tiny_folder, data, "--weights", "full", "--learning-rate", 0.003, "--dtype", "float32",
                      "--batch-size", 8, "--pack-tokens", 512, "--json", "--eval-data", data)
    words[words.index("--steps") + 1] = "60"
    record = json.loads(hearth(*words, home=tmp_path).stdout)
    result = record["receipt"]["result"]
    assert result["last_loss"] < 0.1 < 3 < result["first_loss"]
    assert result["held_out_loss"]["after"] < 0.1 < 3 < result["held_out_loss"]["before"]
    for row in (colour_rows()[3], colour_rows()[4]):
        told = hearth("run", record["output"], row["prompt"], "--temperature", 0, "--quiet",
                      "--max-tokens", 8, home=tmp_path)
        assert told.stdout.strip() == row["completion"]
    assert record["receipt"]["outputs"] == outputs(tmp_path)


def test_an_adapter_is_found_by_its_run_and_changes_the_answer(tiny_folder, data, tmp_path):
    hearth(*arguments(tiny_folder, data, "--learning-rate", 0.01), home=tmp_path)
    ask = ("run", tiny_folder, "item 4", "--temperature", 0, "--quiet", "--max-tokens", 8)
    plain = hearth(*ask, home=tmp_path).stdout
    by_run = hearth(*ask, "--adapter", "run", home=tmp_path).stdout
    by_path = hearth(*ask, "--adapter", RunFolder(tmp_path, "run").output, home=tmp_path).stdout
    assert by_run == by_path != plain
    refused = hearth(*ask, "--adapter", "gone", home=tmp_path, check=False)
    assert refused.returncode == 3 and "there are: run" in refused.stderr
    listed = json.loads(hearth("runs", "--json", home=tmp_path).stdout)
    assert [(one["name"], one["is_finished"], one["steps"]) for one in listed] == [("run", True, STEPS)]


@pytest.fixture
def tune(capfd, tmp_path, monkeypatch):
    """Run the command in this process."""
    for name, value in environment(tmp_path, HEARTH_OFFLINE="1").items():
        monkeypatch.setenv(name, value)
    return lambda *words: run_main(capfd, *words)


def test_a_dry_run_shows_the_plan_and_writes_nothing(tune, tiny_folder, data, tmp_path):
    shown = tune(*arguments(tiny_folder, data, "--dry-run"))
    assert shown.code == 0
    assert "[[red<|im_end|>]]" in shown.out and "memory" in shown.out and "twice the rank" in shown.out
    assert not (tmp_path / "runs").exists()
    record = json.loads(tune(*arguments(tiny_folder, data, "--dry-run", "--json")).out)
    assert record["num_steps"] == STEPS and record["memory_bytes"]["total"] > 0 and record["samples"] == 24


def test_a_recipe_is_the_same_as_its_flags(tune, tiny_folder, data, tmp_path):
    recipe = tmp_path / "a.toml"
    recipe.write_text(f'method = "sft"\nmodel = "{tiny_folder}"\ndata = "{data}"\nout = "run"\n'
                      "lora_rank = 3\n")
    plan = json.loads(tune("tune", recipe, "--steps", 5, "--dry-run", "--json").out)
    assert (plan["settings"]["lora_rank"], plan["num_steps"]) == (3, 5)
    flags = json.loads(tune("tune", "sft", tiny_folder, "--data", data, "--out", "run", "--lora-rank", 3,
                            "--steps", 5, "--dry-run", "--json").out)
    assert flags["settings"] == plan["settings"]


@pytest.mark.parametrize("line, told", [
    ("lora_rnk = 3", "did you mean `lora_rank`?"), ("lora_rank = 0", "expected 1 or more"),
    ('lora_rank = "x"', "expected int"), ('schedule = "cosinus"', "cosine"), ("epochs = -1", "above 0"),
    ('lora_layers = ["lm_head"]', "q_proj"), ("out = ", "is not TOML"),
    ('data = "gone.jsonl"', "no data file"),
])
def test_wrong_settings_are_refused_with_what_would_work(tune, tiny_folder, tmp_path, line, told):
    recipe = tmp_path / "a.toml"
    lines = {"method": '"sft"', "model": f'"{tiny_folder}"', "data": '"a.jsonl"', "out": '"run"'}
    write_jsonl(tmp_path / "a.jsonl", colour_rows(2))
    name, value = line.split(" = ") if " = " in line else (line, "")
    recipe.write_text("".join(f"{key} = {text}\n" for key, text in {**lines, name.strip(): value}.items()))
    done = tune("tune", recipe, "--dry-run")
    assert done.code in (2, 3) and told in done.err, done.err


def test_a_run_is_not_overwritten_and_not_resumed_as_another(tune, tiny_folder, data, tmp_path):
    words = [*arguments(tiny_folder, data), "--steps", "2"]
    assert tune(*words).code == 0
    again = tune(*words)
    assert again.code == 2 and "--resume" in again.err
    (tmp_path / "runs" / "run" / "receipt.json").unlink()
    other = tune(*words, "--resume", "--seed", "7")
    assert other.code == 2 and "another seed" in other.err
    assert tune(*words, "--resume").code == 0


def test_an_exploding_loss_names_the_batch_and_keeps_a_checkpoint(tune, tiny_folder, data, tmp_path):
    done = tune(*arguments(tiny_folder, data, "--learning-rate", "1e30", "--weights", "full",
                           "--dtype", "float32", "--checkpoint-every", "1"))
    assert done.code == 11, done.err
    assert "train.jsonl:" in done.err and "hint:" in done.err and "is kept" in done.err
    named = json.loads((tmp_path / "runs" / "run" / "diverged.json").read_text())
    assert len(named["rows"]) == 4 and named["step"] >= 2
    kept = (tmp_path / "runs" / "run" / "diverged.jsonl").read_text().splitlines()
    assert [f"{row['file']}:{row['line']}" for row in map(json.loads, kept)] == named["rows"]
    assert all(len(row["token_ids"]) == len(row["is_trained"]) for row in map(json.loads, kept))
    assert RunFolder(tmp_path, "run").checkpoints.newest().step == named["step"] - 1
