"""What is kept of responses: by owner, for some days, through a kill."""

import os
import signal
import subprocess
import sys

import pytest

from openhearth.errors import BadFile
from openhearth.server.response_store import ResponseStore

DAY_S = 86_400


def test_owners_do_not_see_each_other_and_old_ones_go(tmp_path):
    now = [1000.0]
    store = ResponseStore(tmp_path / "new" / "r.db", keep_days=2, clock=lambda: now[0])
    store.put("alice", {"id": "a", "text": "\ud800"}, [{"id": "x"}])
    assert store.get("alice", "a").response["text"] == "\ud800" and store.get("alice", "a").input_items
    assert store.get("bob", "a") is None and not store.delete("bob", "a")
    now[0] += DAY_S
    store.put("alice", {"id": "b"}, [])
    now[0] += 1.1 * DAY_S
    assert store.get("alice", "a") is None and store.get("alice", "b") is not None
    assert store.delete("alice", "b") and store.get("alice", "b") is None
    assert store.get("alice", "\ud800") is None
    store.close()


def test_a_file_that_is_no_store_is_refused(tmp_path):
    (tmp_path / "r.db").write_text("not a database, and long enough to be read as one\n" * 20)
    with pytest.raises(BadFile, match="no store of responses"):
        ResponseStore(tmp_path / "r.db")


def test_what_was_kept_before_a_kill_is_there_after_it(tmp_path):
    code = ("import sys, itertools; from pathlib import Path\n"
            "from openhearth.server.response_store import ResponseStore\n"
            "store = ResponseStore(Path(sys.argv[1]))\n"
            "for i in itertools.count():\n"
            "    store.put('me', {'id': str(i), 'text': 'x' * 5000}, [])\n"
            "    print(i, flush=True)")
    writer = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "r.db")], stdout=subprocess.PIPE,
                              text=True)
    for line in writer.stdout:
        if int(line) == 200:
            os.kill(writer.pid, signal.SIGKILL)
            break
    known = [int(line) for line in writer.stdout.read().split()]
    writer.wait()
    store = ResponseStore(tmp_path / "r.db")
    assert all(store.get("me", str(i)) for i in range(max([200, *known]) + 1))
    store.put("me", {"id": "after"}, [])
