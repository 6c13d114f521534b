"""`hearth eval` end to end on tiny models: table, receipt, resume, comparison, refusals."""

import json
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from support.command import environment, hearth
from support.in_process import run_main
from support.tiny import build_llama

from openhearth.models import AdapterWeights
from openhearth.models.adapter_files import read_adapter, write_adapter

SETTINGS = ("--dtype", "float32", "--threads", "1")


@pytest.fixture
def run(capfd, tmp_path, monkeypatch, tiny_folder):
    for name, value in environment(tmp_path / "home", HEARTH_OFFLINE="1").items():
        monkeypatch.setenv(name, value)
    return lambda *args, model=tiny_folder: run_main(capfd, "eval", model, *SETTINGS, *args)


def test_a_second_run_gives_the_same_hash_and_the_files_say_what_was_said(run, tmp_path):
    args = ("--task", "chain_sum,gcd", "--num", "6", "--max-tokens", "8", "--out", tmp_path / "out", "--json")
    done = run(*args)
    assert done.code == 0, done.err
    record = json.loads(done.out)
    assert list(record["results"]) == ["chain_sum", "gcd"] and record["num_samples"] == 12
    result = record["results"]["chain_sum"]
    assert result["num_problems"] == 6 and 0 <= result["low"] <= result["accuracy"] <= result["high"] <= 1
    assert record["settings"]["tasks"][0]["source"] == "reasoning-gym 0.1.25"
    assert len(record["settings"]["weights"]) == 64 and record["settings"]["sampling"] == {"temperature": 0.0}
    lines = [json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").read_text().splitlines()]
    assert len(lines) == 12
    assert all(len(line["token_ids"]) == len(line["logprobs"]) > 0 and line["prompt_token_ids"]
               and line["verdict"] in {"correct", "wrong", "no_answer"} for line in lines)
    again = json.loads(run(*args).out)
    assert again["samples_sha256"] == again["earlier_samples_sha256"] == record["samples_sha256"]
    threaded = json.loads(run(*args, "--threads", "2").out)
    assert threaded["samples_sha256"] == record["samples_sha256"]
    other = run(*args[:-3], "--out", tmp_path / "other", "--seed", "1", "--samples", "2",
                "--temperature", "1", "--json")
    assert json.loads(other.out)["samples_sha256"] != record["samples_sha256"]


def test_the_table_is_on_stdout_and_progress_on_stderr(run, tmp_path):
    done = run("--task", "chain_sum", "--num", "4", "--samples", "2", "--temperature", "1",
               "--max-tokens", "6", "--out", tmp_path / "out")
    assert done.code == 0, done.err
    header, row = done.out.splitlines()
    assert header.split() == ["model", "task", "problems", "accuracy", "95%", "interval", "pass@2", "no",
                              "answer", "cut", "tokens"]
    assert row.split()[1:3] == ["chain_sum", "4"]
    assert "4 of 4 problems" in done.err and "8 answers" in done.err


def test_two_models_are_compared_on_the_same_problems(run, tmp_path):
    build_llama(tmp_path / "second", seed=5)
    args = ("--task", "chain_sum", "--num", "5", "--max-tokens", "6", "--out", tmp_path / "out")
    done = run(*args, "--against", tmp_path / "second", "--json")
    assert done.code == 0, done.err
    record = json.loads(done.out)
    assert record["settings"]["weights"] != record["against"]["settings"]["weights"]
    pair = record["paired"]["chain_sum"]
    assert pair["num_pairs"] == 5 and 0 < pair["p_value"] <= 1
    table = run(*args, "--against", tmp_path / "second")
    assert "exact McNemar p = " in table.out and len(table.out.splitlines()) == 4
    assert "equal those of the earlier run, bit for bit" in table.err
    shutil.rmtree(tmp_path / "out" / "against")
    resumed = json.loads(run(*args, "--against", tmp_path / "second", "--resume", "--json").out)
    assert resumed["paired"] == record["paired"]


def test_an_adapter_is_evaluated_against_its_base(run, tmp_path, tiny_folder):
    generator = torch.Generator().manual_seed(0)
    pairs = {f"model.layers.0.mlp.{name}": (torch.randn(2, inputs, generator=generator),
                                            torch.randn(outputs, 2, generator=generator))
             for name, inputs, outputs in (("gate_proj", 64, 128), ("down_proj", 128, 64))}
    folder = tmp_path / "adapter"
    folder.mkdir()
    write_adapter(folder, AdapterWeights(pairs, 1.0), rank=2, alpha=2.0, is_rank_stabilised=False,
                  base_model=str(tiny_folder), base_weights_sha256="0" * 64)
    args = ("--task", "chain_sum", "--num", "5", "--max-tokens", "6", "--json")
    done = run(*args, "--adapter", folder, "--against", tiny_folder, "--out", tmp_path / "adapted")
    assert done.code == 0, done.err
    assert "trained on other weights (0000" in done.err
    record, plain = json.loads(done.out), json.loads(run(*args, "--out", tmp_path / "plain").out)
    assert record["settings"]["adapter"] == read_adapter(folder).sha256
    assert record["model"].endswith(str(folder)) and plain["settings"]["adapter"] is None
    assert record["samples_sha256"] != plain["samples_sha256"] == record["against"]["samples_sha256"]
    build_llama(tmp_path / "narrow", hidden_size=32)
    unfit = run(*args, "--adapter", folder, model=tmp_path / "narrow")
    assert unfit.code == 2 and "does not fit the model" in unfit.err and "[rank, 32]" in unfit.err
    refused = run(*args, "--adapter", "gone")
    assert refused.code == 3 and "no run `gone`" in refused.err


def test_a_dry_run_asks_nothing_and_shows_the_first_prompt(run, tmp_path):
    done = run("--task", "chain_sum", "--num", "7", "--dry-run", "--json")
    assert done.code == 0, done.err
    [task] = json.loads(done.out)["tasks"]
    assert task["problems"] == 7 and task["longest_prompt_tokens"] > 10
    assert "<|im_start|>user" in task["prompt"]
    assert not (tmp_path / "home" / "evals").exists()
    assert "first prompt:" in run("--task", "chain_sum", "--dry-run").out


@pytest.mark.parametrize("args,said", [
    ((), "no task to ask"), (("--task", "nothing"), "no task `nothing`"),
    (("--task", "gcd,gcd"), "named twice"), (("--task", "gcd", "--num", "0"), "num_problems is 0"),
    (("--task", "gcd", "--temperature", "-1"), "temperature"),
    (("--task", "gcd", "--resume", "--out", "/nonexistent-but-creatable"), None)])
def test_mistakes_are_refused(run, args, said, tmp_path):
    args = tuple(str(tmp_path / "new") if arg == "/nonexistent-but-creatable" else arg for arg in args)
    done = run(*args)
    assert done.code == 2 and (said or "nothing to resume") in done.err, done.err


def test_ctrl_c_keeps_what_is_done_and_resume_gives_the_uninterrupted_bytes(tmp_path, tiny_folder):
    args = ["eval", str(tiny_folder), *SETTINGS, "--task", "chain_sum", "--num", "300", "--samples", "4",
            "--temperature", "1", "--max-tokens", "24"]
    home = tmp_path / "home"
    process = subprocess.Popen([sys.executable, "-m", "openhearth", *args, "--out", str(tmp_path / "cut")],
                               env=environment(home), text=True, stderr=subprocess.PIPE,
                               stdout=subprocess.PIPE)
    partial = tmp_path / "cut" / "samples.partial.jsonl"
    deadline = time.monotonic() + 240
    while not (partial.exists() and partial.stat().st_size > 20_000):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and out == "" and "--resume goes on" in err, err
    kept = len(partial.read_text().splitlines())
    assert 0 < kept < 1200 and kept % 4 == 0
    refused = hearth(*args, "--out", tmp_path / "cut", home=home, check=False)
    assert refused.returncode == 2 and "--resume" in refused.stderr
    resumed = hearth(*args, "--out", tmp_path / "cut", "--resume", "--json", home=home)
    whole = hearth(*args, "--out", tmp_path / "whole", "--json", home=home)
    records = [json.loads(done.stdout) for done in (resumed, whole)]
    assert records[0]["samples_sha256"] == records[1]["samples_sha256"]
    assert (tmp_path / "cut" / "samples.jsonl").read_bytes() == (
        tmp_path / "whole" / "samples.jsonl").read_bytes()


def test_a_base_model_without_template_is_refused(run, tmp_path):
    build_llama(tmp_path / "base")
    (tmp_path / "base" / "chat_template.jinja").unlink()
    for more in ((), ("--dry-run",)):
        done = run("--task", "gcd", "--num", "1", *more, model=tmp_path / "base")
        assert done.code == 10 and "chat template" in done.err, done.err
