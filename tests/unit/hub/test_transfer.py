"""Fetching one file: ranges, resume, sharing, hashes, disks."""

import errno
import hashlib
import json
import os
import resource
import signal
import time

import pytest
from support.hub_server import HubServer, git_blob_id
from support.transfers import config_for, random_bytes, reports, start_fetch

from openhearth.errors import (
    AccessDenied,
    BadFile,
    HashMismatch,
    HearthError,
    ModelNotFound,
    NetworkError,
    NotEnoughDisk,
    Offline,
    UsageError,
)
from openhearth.hub.http import Client, Patience
from openhearth.hub.partial import Target, beside, disk_error
from openhearth.hub.ranges import Download
from openhearth.hub.records import RemoteFile
from openhearth.hub.transfer import discard, fetch, num_bytes_present

CHUNK = 1 << 20


@pytest.fixture
def server():
    with HubServer() as server:
        yield server


@pytest.fixture
def config(server, tmp_path):
    return config_for(server, tmp_path)


def offered(server, body, *, is_pinned=True, etag=None):
    url = server.add_file("/model.gguf", body, etag=etag)
    return RemoteFile("model.gguf", url, size=len(body),
                      sha256=hashlib.sha256(body).hexdigest() if is_pinned else None)


def left_beside(partial):
    return sorted(path.name for path in partial.parent.iterdir() if path != partial)


@pytest.mark.parametrize("num_bytes", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 7 * CHUNK + 123])
@pytest.mark.parametrize("num_connections", [1, 4])
def test_bytes_arrive_once_and_nothing_else_is_left(server, config, tmp_path, num_bytes, num_connections):
    body = random_bytes(num_bytes)
    partial = tmp_path / "parts" / "x"
    digest = fetch(offered(server, body), partial, config=config, num_connections=num_connections)
    assert digest == hashlib.sha256(body).hexdigest()
    assert partial.read_bytes() == body
    assert server.total_served() == num_bytes
    assert left_beside(partial) == []


def test_size_and_hash_may_be_unknown(server, config, tmp_path):
    body = random_bytes(3 * CHUNK + 5)
    url = server.add_file("/x", body)
    assert fetch(RemoteFile("x", url), tmp_path / "x", config=config) == hashlib.sha256(body).hexdigest()
    server.add_file("/empty", b"")
    empty = RemoteFile("empty", server.url + "/empty")
    assert fetch(empty, tmp_path / "empty", config=config) == hashlib.sha256().hexdigest()


def test_large_files_are_asked_for_in_parallel_ranges(server, config, tmp_path):
    body = random_bytes(12 * CHUNK)
    server.faults.delay_s = 0.01
    progress = []
    fetch(offered(server, body), tmp_path / "x", config=config, on_progress=progress.append)
    ranges = [headers["range"] for headers in server.headers_of("/model.gguf")]
    assert len(ranges) == len(set(ranges)) >= 12
    assert server.peak_active == 4
    done = [p.done_bytes for p in progress if p.phase == "download"]
    assert done == sorted(done) and done[-1] == len(body) and len(done) >= 3
    assert {p.total_bytes for p in progress} == {len(body)}


def test_connections_are_used_again(server, config, tmp_path):
    accepted = []
    for each in server._servers:
        original = each.get_request
        each.get_request = lambda original=original: (accepted.append(1), original())[1]
    fetch(offered(server, random_bytes(16 * CHUNK)), tmp_path / "x", config=config, num_connections=2)
    assert len(server.headers_of("/model.gguf")) >= 8
    assert len(accepted) <= 3


def test_dropped_connections_go_on_where_they_broke(server, config, tmp_path):
    body = random_bytes(4 * CHUNK)
    server.faults.drop_after = 300_000
    assert fetch(offered(server, body), tmp_path / "x", config=config)
    assert (tmp_path / "x").read_bytes() == body
    assert server.total_served() < len(body) + 1000, "bytes were fetched twice"


@pytest.mark.parametrize("has_ranges", [True, False])
def test_a_server_that_never_gives_progress_ends_in_an_error(server, config, tmp_path, has_ranges):
    server.faults.drop_after, server.faults.has_ranges = 0, has_ranges
    patience = Patience(num_tries=4, first_wait_s=0.02, max_wait_s=1, connect_s=2, read_s=5)
    download = Download(Target("model.gguf", offered(server, random_bytes(2 * CHUNK)).url), tmp_path / "x",
                        Client(config), num_connections=1, report=lambda *_: None, patience=patience)
    with pytest.raises(NetworkError, match="broke off 4 times"):
        download.run()
    assert len(server.headers_of("/model.gguf")) == 4


def test_busy_answers_are_tried_again_after_the_time_they_ask_for(server, config, tmp_path):
    server.faults.fail_statuses = [429, 503]
    server.faults.retry_after = "1"
    start = time.monotonic()
    fetch(offered(server, b"abc"), tmp_path / "x", config=config)
    assert 2 <= time.monotonic() - start < 60
    assert len(server.headers_of("/model.gguf")) == 3


def test_a_wait_that_is_too_long_is_refused_with_the_number(server, config, tmp_path):
    server.faults.fail_statuses = [429]
    server.faults.retry_after = "9999"
    with pytest.raises(NetworkError, match="asks to wait 9999 s"):
        fetch(offered(server, b"abc"), tmp_path / "x", config=config)


@pytest.mark.parametrize("status,kind", [(401, AccessDenied), (403, AccessDenied), (404, ModelNotFound),
                                         (410, ModelNotFound), (400, NetworkError)])
def test_refusals_have_their_class(server, config, tmp_path, status, kind):
    server.faults.fail_statuses = [status]
    with pytest.raises(kind):
        fetch(offered(server, b"abc"), tmp_path / "x", config=config)


# -- no ranges, odd servers


def test_without_ranges_one_stream_is_read_and_said_so(server, config, tmp_path):
    body = random_bytes(3 * CHUNK)
    server.faults.has_ranges = False
    progress = []
    assert fetch(offered(server, body), tmp_path / "x", config=config, on_progress=progress.append)
    assert (tmp_path / "x").read_bytes() == body and server.total_served() == len(body)
    assert any("no ranges" in p.note for p in progress)


def test_without_ranges_a_break_starts_over(server, config, tmp_path):
    body = random_bytes(3 * CHUNK)
    server.faults.has_ranges = False
    server.faults.drop_after, server.faults.num_drops = CHUNK, 2
    assert fetch(offered(server, body), tmp_path / "x", config=config) == hashlib.sha256(body).hexdigest()
    assert server.total_served() == 2 * CHUNK + len(body)


def test_without_length_the_stream_ends_when_it_ends(server, config, tmp_path):
    body = random_bytes(2 * CHUNK + 17)
    server.faults.has_ranges, server.faults.is_chunked = False, True
    url = server.add_file("/x", body)
    assert fetch(RemoteFile("x", url), tmp_path / "x", config=config) == hashlib.sha256(body).hexdigest()
    server.faults.drop_after, server.faults.num_drops = CHUNK, 1
    assert fetch(RemoteFile("x", url), tmp_path / "y", config=config) == hashlib.sha256(body).hexdigest()


def test_ranges_that_vanish_between_runs_start_over(server, config, tmp_path):
    body = random_bytes(4 * CHUNK)
    remote = offered(server, body)
    interrupt_after(server, config, remote, tmp_path / "x", 2 * CHUNK)
    server.faults.has_ranges = False
    assert fetch(remote, tmp_path / "x", config=config)
    assert (tmp_path / "x").read_bytes() == body


def test_a_wrong_content_range_is_refused(server, config, tmp_path):
    server.faults.wrong_content_range = True
    with pytest.raises(NetworkError, match="ranges cannot be trusted"):
        fetch(offered(server, random_bytes(2 * CHUNK)), tmp_path / "x", config=config)


@pytest.mark.parametrize("has_ranges,is_chunked", [(True, False), (False, False), (False, True)])
def test_more_bytes_than_promised_are_refused(server, config, tmp_path, has_ranges, is_chunked):
    server.faults.has_ranges, server.faults.is_chunked, server.faults.extra_bytes = has_ranges, is_chunked, 10
    with pytest.raises((NetworkError, HashMismatch)):
        fetch(offered(server, random_bytes(2 * CHUNK)), tmp_path / "x", config=config)
    assert not (tmp_path / "x").exists()


def test_a_compressed_body_is_refused(server, config, tmp_path):
    server.faults.content_encoding = "gzip"
    with pytest.raises(NetworkError, match="Content-Encoding gzip"):
        fetch(offered(server, b"abc"), tmp_path / "x", config=config)


def test_another_size_than_listed_is_a_mismatch(server, config, tmp_path):
    remote = offered(server, b"abcd")
    server.add_file("/model.gguf", b"abc")
    with pytest.raises(HashMismatch, match="has 3 bytes, 4 were promised"):
        fetch(remote, tmp_path / "x", config=config)


# -- hashes


@pytest.mark.parametrize("has_ranges", [True, False])
def test_wrong_bytes_are_removed_and_both_hashes_named(server, config, tmp_path, has_ranges):
    body = random_bytes(3 * CHUNK)
    remote = offered(server, body)
    server.add_file("/model.gguf", b"\0" + body[1:])
    server.faults.has_ranges = has_ranges
    with pytest.raises(HashMismatch) as caught:
        fetch(remote, tmp_path / "x", config=config)
    assert remote.sha256 in str(caught.value)
    assert hashlib.sha256(b"\0" + body[1:]).hexdigest() in str(caught.value)
    assert server.url in str(caught.value)
    assert not (tmp_path / "x").exists() and left_beside(tmp_path / "x") == []


def test_git_blob_ids_are_checked(server, config, tmp_path):
    url = server.add_file("/config.json", b"{}")
    good = RemoteFile("config.json", url, size=2, git_sha1=git_blob_id(b"{}"))
    assert fetch(good, tmp_path / "x", config=config) == hashlib.sha256(b"{}").hexdigest()
    bad = RemoteFile("config.json", url, size=2, git_sha1=git_blob_id(b"[]"))
    with pytest.raises(HashMismatch, match="git blob id"):
        fetch(bad, tmp_path / "y", config=config)


@pytest.mark.parametrize("sha256", ["../../etc/passwd", "a" * 63, "A" * 64, ""])
def test_malformed_digests_are_refused_before_any_request(server, config, tmp_path, sha256):
    with pytest.raises(BadFile, match="malformed sha256"):
        fetch(RemoteFile("x", server.url + "/x", sha256=sha256), tmp_path / "x", config=config)
    assert server.requests == []


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "a/../b", "a\\b", "a\nb", "", "a//b", "x" * 300,
                                  "a\u202eb", "a/" * 600 + "b", "./a", "\ud800"])
def test_paths_that_leave_the_folder_are_refused(server, config, tmp_path, path):
    with pytest.raises(BadFile):
        fetch(RemoteFile(path, server.url + "/x"), tmp_path / "x", config=config)
    assert server.requests == []


# -- resume


def interrupt_after(server, config, remote, partial, num_bytes, num_connections=2):
    """Start a fetch here and interrupt it as Ctrl-C does once that many bytes have arrived."""
    def stop(progress):
        if progress.done_bytes >= num_bytes:
            raise KeyboardInterrupt
    server.faults.delay_s = 0.02
    with pytest.raises(KeyboardInterrupt):
        fetch(remote, partial, config=config, on_progress=stop, num_connections=num_connections)
    server.faults.delay_s = 0.0
    server.settle()


def test_an_interrupted_fetch_keeps_its_bytes(server, config, tmp_path):
    body = random_bytes(8 * CHUNK)
    remote, partial = offered(server, body), tmp_path / "x"
    interrupt_after(server, config, remote, partial, 3 * CHUNK)
    present, total = num_bytes_present(partial)
    assert 3 * CHUNK <= present < len(body) and total == len(body)
    server.served.clear()
    progress = []
    fetch(remote, partial, config=config, on_progress=progress.append)
    assert partial.read_bytes() == body
    assert server.total_served() == len(body) - present
    assert progress[0].resumed_bytes == present and progress[0].done_bytes == present


def test_a_changed_file_without_a_hash_starts_over(server, config, tmp_path):
    old, new = random_bytes(6 * CHUNK, 1), random_bytes(6 * CHUNK, 2)
    remote, partial = offered(server, old, is_pinned=False), tmp_path / "x"
    interrupt_after(server, config, remote, partial, 2 * CHUNK)
    server.add_file("/model.gguf", new)
    progress = []
    digest = fetch(remote, partial, config=config, on_progress=progress.append)
    assert digest == hashlib.sha256(new).hexdigest()
    assert progress[0].resumed_bytes == 0
    assert any("changed" in p.note for p in progress)


def test_a_file_without_hash_and_etag_is_never_resumed(server, config, tmp_path):
    old, new = random_bytes(6 * CHUNK, 1), random_bytes(6 * CHUNK, 2)
    remote, partial = offered(server, old, is_pinned=False, etag=""), tmp_path / "x"
    interrupt_after(server, config, remote, partial, 2 * CHUNK)
    server.add_file("/model.gguf", new, etag="")
    assert fetch(remote, partial, config=config) == hashlib.sha256(new).hexdigest()


def test_a_file_that_changes_while_it_is_fetched_is_not_mixed(server, config, tmp_path):
    old, new = random_bytes(6 * CHUNK, 1), random_bytes(6 * CHUNK, 2)
    remote, partial = offered(server, old, is_pinned=False), tmp_path / "x"
    server.faults.delay_s = 0.01

    def swap(progress):
        if progress.done_bytes >= CHUNK:
            server.add_file("/model.gguf", new)

    with pytest.raises(NetworkError, match="changed at its source"):
        fetch(remote, partial, config=config, on_progress=swap, num_connections=1)
    server.faults.delay_s = 0
    assert fetch(remote, partial, config=config) == hashlib.sha256(new).hexdigest()


def test_another_address_with_the_same_hash_goes_on(server, config, tmp_path):
    body = random_bytes(6 * CHUNK)
    remote, partial = offered(server, body), tmp_path / "x"
    interrupt_after(server, config, remote, partial, 2 * CHUNK)
    present, _ = num_bytes_present(partial)
    mirror = RemoteFile("model.gguf", server.add_file("/mirror", body), size=len(body), sha256=remote.sha256)
    server.served.clear()
    fetch(mirror, partial, config=config)
    assert server.total_served() == len(body) - present


@pytest.mark.parametrize("num_kills", [5])
def test_killed_processes_lose_at_most_one_chunk_per_connection(server, config, tmp_path, num_kills):
    body = random_bytes(40 * CHUNK)
    remote, partial = offered(server, body), tmp_path / "x"
    server.faults.delay_s = 0.02
    kept = 0
    for attempt in range(num_kills):
        process = start_fetch(remote, partial, num_connections=3)
        line = process.stdout.readline()
        assert f", {kept}]" in line, "the new process did not report what the old one had"
        while num_bytes_present(partial)[0] == kept:
            time.sleep(0.01)
        time.sleep(0.05 * (attempt % 4))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kept, _ = num_bytes_present(partial)
    server.faults.delay_s = 0
    server.settle()
    assert reports(start_fetch(remote, partial, num_connections=3))[-1] == ["done", remote.sha256]
    assert partial.read_bytes() == body
    # What a kill costs: the piece each connection held, and what lay in the sockets' buffers.
    assert server.total_served() <= len(body) + num_kills * 3 * (CHUNK + CHUNK // 4)
    assert num_kills * CHUNK <= kept < len(body)
    assert left_beside(partial) == []


def test_recorded_bytes_are_never_asked_for_again_after_a_kill(server, config, tmp_path):
    body = random_bytes(16 * CHUNK)
    remote, partial = offered(server, body), tmp_path / "x"
    server.faults.delay_s = 0.01
    process = start_fetch(remote, partial, num_connections=2)
    deadline = time.monotonic() + 120
    while num_bytes_present(partial)[0] < 5 * CHUNK and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    kept, _ = num_bytes_present(partial)
    server.faults.delay_s = 0
    server.settle()
    server.served.clear()
    fetch(remote, partial, config=config)
    assert kept >= 5 * CHUNK and server.total_served() == len(body) - kept


def test_a_kill_between_the_last_byte_and_the_return_costs_no_byte(server, config, tmp_path):
    body = random_bytes(3 * CHUNK)
    remote, partial = offered(server, body), tmp_path / "x"
    fetch(remote, partial, config=config)  # as if killed right after: the file is there, unmoved
    server.served.clear()
    assert fetch(remote, partial, config=config) == remote.sha256
    assert server.total_served() == 0
    partial.write_bytes(body[:-1] + b"?")
    assert fetch(remote, partial, config=config) == remote.sha256 and partial.read_bytes() == body


# -- several processes


def test_two_processes_share_one_download(server, config, tmp_path):
    body = random_bytes(16 * CHUNK)
    remote, partial = offered(server, body), tmp_path / "x"
    server.faults.delay_s = 0.2  # until the second process has seen the first one's progress
    first = start_fetch(remote, partial)
    first.stdout.readline()
    second = start_fetch(remote, partial)
    seen = ["wait", 0, None, 0]
    while seen[0] == "wait" and not seen[1]:
        seen = json.loads(second.stdout.readline())
    assert seen[0] == "wait" and 0 < seen[1] < seen[2] == len(body)
    server.faults.delay_s = 0
    told = [reports(first), reports(second)]
    assert [lines[-1] for lines in told] == [["done", remote.sha256]] * 2
    assert server.total_served() == len(body)
    waiting = [line[1] for line in told[1] if line[0] == "wait"]
    assert waiting == sorted(waiting)
    assert partial.read_bytes() == body and left_beside(partial) == []


def test_the_second_process_takes_over_when_the_first_dies(server, config, tmp_path):
    body = random_bytes(16 * CHUNK)
    remote, partial = offered(server, body), tmp_path / "x"
    server.faults.delay_s = 0.2
    first = start_fetch(remote, partial)
    first.stdout.readline()
    second = start_fetch(remote, partial)
    assert second.stdout.readline().startswith('["wait"')
    server.faults.delay_s = 0.01
    while num_bytes_present(partial)[0] < 4 * CHUNK:
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert reports(second)[-1] == ["done", remote.sha256]
    assert server.total_served() < len(body) + 20 * CHUNK
    assert partial.read_bytes() == body


def test_the_waiting_process_learns_the_digest_after_the_file_has_moved_away(server, config, tmp_path):
    body = random_bytes(8 * CHUNK)
    remote, partial = offered(server, body, is_pinned=False), tmp_path / "x"
    server.faults.delay_s = 0.2
    first = start_fetch(remote, partial)
    first.stdout.readline()
    second = start_fetch(remote, partial)
    assert second.stdout.readline().startswith('["wait"')
    server.faults.delay_s = 0.02
    while first.poll() is None:
        time.sleep(0.001)
    os.replace(partial, tmp_path / "moved")
    assert reports(second)[-1] == ["done", hashlib.sha256(body).hexdigest()]
    assert server.total_served() == len(body)


def test_a_digest_left_by_an_earlier_time_is_not_believed(server, config, tmp_path):
    body = random_bytes(CHUNK)
    remote, partial = offered(server, body), tmp_path / "x"
    beside(partial, "lock").write_text(remote.sha256)
    fetch(remote, partial, config=config)
    assert partial.read_bytes() == body


def test_discard_removes_everything_unless_it_is_in_use(server, config, tmp_path):
    body = random_bytes(8 * CHUNK)
    remote, partial = offered(server, body), tmp_path / "x"
    server.faults.delay_s = 0.02
    process = start_fetch(remote, partial)
    while not num_bytes_present(partial)[0]:
        time.sleep(0.01)
    assert not discard(partial) and partial.exists()
    process.send_signal(signal.SIGINT)
    assert process.wait(120) == 130
    process.communicate()
    assert num_bytes_present(partial)[0] > 0
    assert discard(partial)
    assert list(tmp_path.iterdir()) == []


# -- disks


def test_a_disk_that_is_too_small_is_met_before_the_first_byte(server, config, tmp_path):
    remote = RemoteFile("model.gguf", server.url + "/model.gguf", size=1 << 60)
    with pytest.raises(NotEnoughDisk, match=r"needs 1024\.0 PiB, the disk has"):
        fetch(remote, tmp_path / "x", config=config)
    assert server.requests == []


@pytest.mark.parametrize("has_ranges", [True, False])
def test_a_file_size_limit_is_a_full_disk(server, config, tmp_path, has_ranges):
    body = random_bytes(4 * CHUNK)
    remote, partial = offered(server, body), tmp_path / "x"
    server.faults.has_ranges = has_ranges
    process = start_fetch(remote, partial, preexec_fn=lambda: resource.setrlimit(
        resource.RLIMIT_FSIZE, (2 * CHUNK, resource.RLIM_INFINITY)))
    told = reports(process)
    assert told[-1][:2] == ["error", "NotEnoughDisk"] and process.returncode == 7
    assert "ulimit" in told[-1][2]
    assert fetch(remote, partial, config=config)


def test_a_disk_that_fills_up_on_the_way_keeps_what_arrived(server, config, tmp_path):
    body = random_bytes(8 * CHUNK)
    remote, partial = offered(server, body), tmp_path / "x"
    server.faults.delay_s = 0.01
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(progress):
        if progress.done_bytes >= 2 * CHUNK:
            resource.setrlimit(resource.RLIMIT_FSIZE, (3 * CHUNK, hard))

    try:
        with pytest.raises(NotEnoughDisk, match="what has arrived is kept"):
            fetch(remote, partial, config=config, on_progress=fill, num_connections=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    kept, _ = num_bytes_present(partial)
    server.faults.delay_s = 0
    server.settle()
    server.served.clear()
    assert fetch(remote, partial, config=config) == remote.sha256
    assert kept >= 2 * CHUNK and server.total_served() == len(body) - kept


@pytest.mark.parametrize("code,words", [(errno.ENOSPC, "the disk is full"),
                                        (errno.EDQUOT, "the quota is used up")])
def test_full_disks_are_named(code, words):
    error = disk_error(OSError(code, os.strerror(code)), "model.gguf")
    assert isinstance(error, NotEnoughDisk) and words in str(error) and error.hint
    other = OSError(errno.EIO, "broken")
    assert disk_error(other, "model.gguf") is other


# -- offline, redirects, tokens


def test_offline_no_socket_is_made(server, tmp_path):
    config = config_for(server, tmp_path, HEARTH_OFFLINE="1")
    with pytest.raises(Offline, match="/model\\.gguf"):
        fetch(offered(server, b"abc"), tmp_path / "x", config=config)
    assert server.requests == []


def test_headers_stay_with_their_origin(server, config, tmp_path):
    body = random_bytes(6 * CHUNK)
    server.faults.redirect_large = True
    commit = server.add_repo("o/n", {"model.safetensors": body}, token="secret")
    remote = RemoteFile("m", f"{server.url}/o/n/resolve/{commit}/model.safetensors", size=len(body),
                        sha256=hashlib.sha256(body).hexdigest(), headers={"Authorization": "Bearer secret"})
    assert fetch(remote, tmp_path / "x", config=config) == remote.sha256
    assert all(h["authorization"] == "Bearer secret" for h in server.headers_of("/resolve/"))
    storage = server.headers_of("/storage/")
    assert len(storage) >= 4 and not any("authorization" in headers for headers in storage)
    assert len(server.headers_of("/resolve/")) < len(storage), "each range asked the hub again"
    assert "secret" not in repr(remote)


def test_an_expired_signed_address_is_asked_for_again(server, config, tmp_path):
    body = random_bytes(6 * CHUNK)
    server.faults.redirect_large = True
    commit = server.add_repo("o/n", {"model.safetensors": body})
    remote = RemoteFile("m", f"{server.url}/o/n/resolve/{commit}/model.safetensors", size=len(body),
                        sha256=hashlib.sha256(body).hexdigest())
    server.faults.delay_s = 0.005

    def expire(progress):
        if server.faults.delay_s and progress.done_bytes >= CHUNK:
            server.faults.delay_s, server.faults.expire_signed = 0.0, 1

    fetch(remote, tmp_path / "x", config=config, on_progress=expire, num_connections=1)
    assert (tmp_path / "x").read_bytes() == body
    assert len(server.headers_of("/resolve/")) == 2


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x", "gopher://x/"])
def test_redirects_to_other_schemes_are_refused(server, config, tmp_path, target):
    server.faults.redirect_to = target
    with pytest.raises(NetworkError, match="is not followed"):
        fetch(offered(server, b"abc"), tmp_path / "x", config=config)


def test_redirects_in_a_circle_end(server, config, tmp_path):
    remote = offered(server, b"abc")
    server.faults.redirect_to = remote.url
    with pytest.raises(NetworkError, match="redirects more than 8 times"):
        fetch(remote, tmp_path / "x", config=config)


def test_a_folder_that_cannot_be_written_is_named(server, config, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(HearthError, match="cannot write to") as caught:
        fetch(offered(server, b"abc"), tmp_path / "file" / "x", config=config)
    assert "HEARTH_HOME" in caught.value.hint


@pytest.mark.parametrize("target", ["http://[bad", "http://h:99999/x", "http://h:port/x"])
def test_redirects_to_malformed_addresses_are_refused(server, config, tmp_path, target):
    server.faults.redirect_to = target
    with pytest.raises(NetworkError, match="malformed address"):
        fetch(offered(server, b"abc"), tmp_path / "x", config=config)


@pytest.mark.parametrize("num_connections", [0, -1, 33])
def test_a_silly_number_of_connections_is_refused(server, config, tmp_path, num_connections):
    with pytest.raises(UsageError, match="expected 1 to 32"):
        fetch(offered(server, b"abc"), tmp_path / "x", config=config, num_connections=num_connections)


def test_no_error_names_a_secret(server, config, tmp_path):
    url = server.url.replace("http://", "http://user:hunter2@") + "/none?signature=hunter3"
    with pytest.raises(HearthError) as caught:
        fetch(RemoteFile("x", url), tmp_path / "x", config=config)
    assert "hunter" not in str(caught.value)
