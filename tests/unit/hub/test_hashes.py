"""Hashes of files in place: computed once, never stale, safe for many processes."""

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from openhearth.errors import BadFile
from openhearth.hub.hashes import MAX_REMEMBERED, HashMemory, hash_file

OLD_NS = time.time_ns() - 3_600_000_000_000


def write_old(path, content, ns=OLD_NS):
    path.write_bytes(content)
    os.utime(path, ns=(ns, ns))
    return path


def sha256(content):
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def memory(tmp_path):
    return HashMemory(tmp_path / "home" / "hashes.json")


def test_a_hash_is_computed_once(memory, tmp_path):
    file = write_old(tmp_path / "m.gguf", b"weights")
    reports = []
    assert memory.digests([file], on_progress=reports.append) == {file: sha256(b"weights")}
    assert reports and reports[-1].done_bytes == 7 and reports[-1].phase == "verify"
    reports.clear()
    assert memory.digests([file], on_progress=reports.append) == {file: sha256(b"weights")}
    assert reports == []


@pytest.mark.parametrize("change", ["content and time", "replaced", "size"])
def test_a_changed_file_is_hashed_again(memory, tmp_path, change):
    file = write_old(tmp_path / "m.gguf", b"weights")
    memory.digests([file])
    if change == "content and time":
        write_old(file, b"WEIGHTS", OLD_NS + 1)
    elif change == "replaced":
        os.replace(write_old(tmp_path / "new", b"WEIGHTS"), file)
    else:
        write_old(file, b"longer weights")
    assert memory.digests([file]) == {file: sha256(file.read_bytes())}


def test_a_file_written_just_now_is_not_remembered(memory, tmp_path):
    file = tmp_path / "m.gguf"
    file.write_bytes(b"weights")
    memory.digests([file])
    stamp = file.stat().st_mtime_ns
    file.write_bytes(b"WEIGHTS")
    os.utime(file, ns=(stamp, stamp))
    assert memory.digests([file]) == {file: sha256(b"WEIGHTS")}


def test_a_link_is_remembered_as_what_it_leads_to(memory, tmp_path):
    file = write_old(tmp_path / "m.gguf", b"weights")
    other = write_old(tmp_path / "n.gguf", b"WEIGHTS")
    link = tmp_path / "link.gguf"
    link.symlink_to(file)
    assert memory.digests([link]) == {link: sha256(b"weights")}
    link.unlink()
    link.symlink_to(other)
    assert memory.digests([link]) == {link: sha256(b"WEIGHTS")}


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"files": []}', b'{"files": {"x": [1, 2]}}', b"\xff"]
)
def test_a_damaged_memory_is_forgotten_and_written_anew(memory, tmp_path, content):
    file = write_old(tmp_path / "m.gguf", b"weights")
    memory.path.parent.mkdir()
    memory.path.write_bytes(content)
    assert memory.digests([file]) == {file: sha256(b"weights")}
    assert str(file) in json.loads(memory.path.read_bytes())["files"]


def test_a_record_that_is_no_digest_is_not_believed(memory, tmp_path):
    file = write_old(tmp_path / "m.gguf", b"weights")
    stat = file.stat()
    memory.path.parent.mkdir()
    memory.path.write_text(
        json.dumps({"files": {str(file): [stat.st_size, stat.st_mtime_ns, stat.st_ino, "../x"]}})
    )
    assert memory.digests([file]) == {file: sha256(b"weights")}


def test_an_unwritable_memory_only_costs_time(tmp_path):
    file = write_old(tmp_path / "m.gguf", b"weights")
    (tmp_path / "home").write_text("a file")
    assert HashMemory(tmp_path / "home" / "hashes.json").digests([file]) == {file: sha256(b"weights")}


def test_the_memory_stays_small(memory, tmp_path):
    memory.path.parent.mkdir()
    memory.path.write_text(
        json.dumps({"files": {f"/old/{i}": [1, 1, 1, "a" * 64] for i in range(MAX_REMEMBERED)}})
    )
    file = write_old(tmp_path / "m.gguf", b"weights")
    memory.digests([file])
    records = json.loads(memory.path.read_bytes())["files"]
    assert len(records) == MAX_REMEMBERED and str(file) in records and "/old/0" not in records


def test_a_file_that_grows_while_it_is_read_is_refused(tmp_path):
    file = tmp_path / "m.gguf"
    file.write_bytes(b"x" * (9 << 20))

    def grow(progress):
        with open(file, "ab") as more:
            more.write(b"y")

    with pytest.raises(BadFile, match="changed while"):
        hash_file(file, on_progress=grow)


def test_many_processes_write_at_once_and_no_record_is_lost(tmp_path):
    code = (
        "import sys; from pathlib import Path; from openhearth.hub.hashes import HashMemory\n"
        "for file in sorted(Path(sys.argv[1]).iterdir()): HashMemory(Path(sys.argv[2])).digests([file])"
    )
    memory, running = tmp_path / "home" / "hashes.json", []
    for i in range(4):
        folder = tmp_path / f"files{i}"
        folder.mkdir()
        for j in range(10):
            write_old(folder / str(j), f"{i} {j}".encode())
        running.append(
            subprocess.Popen(
                [sys.executable, "-c", code, str(folder), str(memory)],
                env={"PYTHONPATH": str(Path(__file__).parents[3] / "src")},
            )
        )
    assert [process.wait(timeout=60) for process in running] == [0] * 4
    records = json.loads(memory.read_bytes())["files"]
    assert {Path(name).read_bytes().decode(): record[3] for name, record in records.items()} == {
        f"{i} {j}": sha256(f"{i} {j}".encode()) for i in range(4) for j in range(10)
    }
