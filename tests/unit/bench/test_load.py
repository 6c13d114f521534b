"""The load program: its short run leaves an idle server as it was, and it sees what is wrong."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.command import environment
from support.faulty import Faulty
from support.serving import offer_tiny, serving_models

from openhearth.server import Models

BENCH = Path(__file__).parents[3] / "bench"


@pytest.fixture(scope="module")
def modules():
    """load.py and its clients; their folder is on the path only meanwhile."""
    before = list(sys.path)
    sys.path.insert(0, str(BENCH))
    try:
        yield importlib.import_module("load"), importlib.import_module("load_clients")
    finally:
        sys.path[:] = before


def test_twenty_seconds_of_load_leave_nothing_behind(tiny_folder, tmp_path):
    done = subprocess.run(
        [sys.executable, BENCH / "load.py", tiny_folder, "--clients", "16", "--minutes", "0.33", "--words",
         "1", "40", "--tokens", "4", "60", "--threads", "1", "--out", tmp_path / "report.json"],
        env=environment(tmp_path / "home", HEARTH_OFFLINE="1"), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report == json.loads((tmp_path / "report.json").read_text())
    assert report["problems"] == [] and report["failures"] == 0
    assert report["answers"] > 10 and report["left"] > 3
    assert 0 < report["first_token_s"]["p50"] <= report["first_token_s"]["p99"]
    assert report["drawn_tokens"] > 0 and report["rows_per_step"] > 2
    assert report["overhead_share"] > 0 and report["tokens_per_s"] > 0


def test_what_an_idle_server_should_not_have_is_named(modules):
    load, clients = modules
    idle = dict.fromkeys(("pages_used", "pages_lost", "running", "waiting", "leases"), 0) | {
        "threads": 9, "files": 12, "resident_bytes": 10**9}
    assert load.problems(idle, idle, clients.Seen()) == []
    for name, value in (("pages_used", 1), ("pages_lost", 1), ("leases", 1), ("threads", 10), ("files", 13)):
        [problem] = load.problems(idle, {**idle, name: value}, clients.Seen())
        assert problem.startswith(name)
    assert load.problems(idle, {**idle, "resident_bytes": 2 * 10**9}, clients.Seen()) == [
        "memory grew by 954 MiB"]
    assert load.problems(idle, {**idle, "threads": 8}, clients.Seen(failures=["x", "y"])) == [
        "2 requests failed, the first with x"]


def test_clients_count_what_they_see_and_what_fails(modules, tiny_folder, tmp_path):
    _, clients = modules
    walls = []

    def around(app):
        walls.append(Faulty(app))
        return walls[0]

    models = Models(offer_tiny({"tiny": tiny_folder}, tmp_path), memory_bytes=1 << 30)
    with serving_models(models, around=around) as running:
        work = clients.Work(clients=3, seconds=0.5, tokens=(4, 8), words=(1, 5), stop_token=2)
        seen = clients.drive(running.url, "tiny", work)
        assert seen.failures == [] and seen.left == 0 and seen.answers >= 3
        assert 4 * seen.answers <= seen.tokens <= 8 * seen.answers
        running.wait_logged(seen.answers)
        served = [line for line in running.log if line["status"] == 200]
        assert seen.tokens == sum(line["completion_tokens"] for line in served)
        walls[0].fault = lambda path, status, body, request: (status, body.replace("data: [DONE]", ""))
        seen = clients.drive(running.url, "tiny", work)
        assert seen.answers == 0 and "ended without [DONE]" in seen.failures[0]
        walls[0].fault = lambda path, status, body, request: (503, body)
        assert "503" in clients.drive(running.url, "tiny", work).failures[0]


def test_another_server_is_compared_in_turns(tiny_folder, tmp_path):
    peer = (f"{sys.executable} -m openhearth serve {tiny_folder} --port {{port}} --quiet --dtype float32 "
            f"--threads 1")
    done = subprocess.run(
        [sys.executable, BENCH / "load.py", tiny_folder, "--clients", "1,4", "--seconds", "1", "--rounds",
         "2", "--words", "1", "20", "--tokens", "4", "30", "--threads", "1", "--peer", peer, "--peer",
         f"{peer} --context 512"],
        env=environment(tmp_path / "home", HEARTH_OFFLINE="1"), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert [row["clients"] for row in rows] == [1, 4]
    for row in rows:
        assert len(row["ratios"]) == 2 and row["ratio"] > 0
        assert row["openhearth"]["tokens_per_s"] > 0 and row["peer"]["first_token_s"]["p99"] > 0
        assert len(row["tried"]) == 2 and row["tried"][row["command"]] == max(row["tried"].values()) > 0
        assert row["command"].startswith(Path(sys.executable).name)
