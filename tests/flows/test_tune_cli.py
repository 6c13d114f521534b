"""`hearth tune`: runs, kills, resumed runs, what is printed and refused."""

import errno
import json
import random
import signal
import subprocess
import sys
import time

import pytest
from support.command import environment, hearth
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
def test_a_kill_while_a_checkpoint_is_written_loses_nothing(tiny_folder, data, kind, uninterrupted, tmp_path,
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
    assert "is full" in done.stderr and "hint:" in done.stderr and errno.errorcode[errno.EFBIG] == "EFBIG"
    kept = RunFolder(tmp_path, "run").checkpoints.newest()
    assert kept is not None and kept.step == 4
    hearth(*words, home=tmp_path)
    assert outputs(tmp_path) == uninterrupted


def test_the_result_runs_and_says_what_it_learned(tiny_folder, data, tmp_path):
    words = arguments(tiny_folder, data, "--steps", 150, "--learning-rate", 0.01, "--dtype", "float32", "--json")
    record = json.loads(hearth(*words, home=tmp_path).stdout)
    assert record["receipt"]["result"]["last_loss"] < 0.3 < record["receipt"]["result"]["first_loss"]
    for number in (4, 5):
        row = colour_rows()[number]
        told = hearth("run", tiny_folder, row["prompt"], "--adapter", "run", "--temperature", 0, "--dtype",
                      "float32", "--quiet", "--max-tokens", 8, home=tmp_path)
        assert told.stdout.strip() == row["completion"]
