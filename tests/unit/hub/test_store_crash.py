"""SIGKILL at any moment, several processes at once: complete models or none, and nothing wrong inside."""

import hashlib
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from openhearth.hub.leftovers import remove_leftovers
from openhearth.hub.store import Store

ROOT = Path(__file__).parents[3]


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def check(store):
    """Every visible model is complete and right, every blob is what its name says."""
    for name in store.names():
        found = store.find(name)
        assert found is not None
        base = found.path if found.path.is_dir() else found.path.parent
        for path, digest in found.files.items():
            assert sha256(base / path) == digest
        assert set(store.verify(name).values()) == {True}
    for blob in store.blobs.rglob("*"):
        if blob.is_file():
            assert sha256(blob) == blob.name


def churn(home, seed):
    process = subprocess.Popen(
        [sys.executable, ROOT / "tests" / "support" / "store_churn.py", home, str(seed)],
        env={"PYTHONPATH": str(ROOT / "src")},
        stdout=subprocess.PIPE,
        text=True,
    )
    return process


@pytest.mark.parametrize("seed", range(2))
def test_a_store_survives_sigkill_of_three_writers_again_and_again(tmp_path, seed):
    store, rng = Store(tmp_path / "home"), random.Random(seed)
    for _ in range(4):
        running = [churn(store.home, rng.random()) for _ in range(3)]
        for process in running:
            assert process.stdout.readline() == "committed\n"
        for process in running:
            time.sleep(rng.uniform(0.02, 0.25))
            process.send_signal(signal.SIGKILL)
        assert [process.wait(timeout=120) for process in running] == [-signal.SIGKILL] * 3
        for process in running:
            process.stdout.close()
        check(store)
    remove_leftovers(store)
    check(store)
    assert not [path for path in store.models.iterdir() if path.name.startswith(".")]
    store.remove(store.names())
    remove_leftovers(store)
    assert [path for path in store.home.rglob("*") if path.is_file() or path.is_symlink()] == [
        path for path in store.home.rglob("*.lock")
    ]


def test_readers_meet_whole_models_while_writers_work(tmp_path):
    store = Store(tmp_path / "home")
    writers = [churn(store.home, seed) for seed in "ab"]
    try:
        num_seen, deadline = 0, time.monotonic() + 120
        while num_seen < 2000:
            assert time.monotonic() < deadline, f"only {num_seen} models were seen in 120 s"
            for name in store.names():
                manifest = store.read(name)
                if manifest is not None:
                    num_seen += 1
                    assert set(manifest.weights) == {"a.gguf"}
        assert [writer.poll() for writer in writers] == [None, None]
    finally:
        for writer in writers:
            writer.kill()
            writer.wait()
            writer.stdout.close()
    check(store)
