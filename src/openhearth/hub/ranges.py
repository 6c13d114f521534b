"""Bring the bytes of one address into one file by parallel ranges, resumable after a kill.

The file is preallocated and its journal records what has arrived. While bytes arrive the calling thread
hashes the gap-free prefix, so little is left to do at the end. A server without ranges goes to `stream`.

Does not: lock, check the hash, or decide where the file goes; `transfer` does.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from collections import deque
from dataclasses import replace
from pathlib import Path

from openhearth.errors import NetworkError
from openhearth.hub.http import (
    TRANSFER,
    Answer,
    Client,
    Patience,
    describe,
    error_of,
    etag_of,
    origin,
    redact,
)
from openhearth.hub.journal import Identity, Journal, Ranges
from openhearth.hub.partial import (
    CHUNK_BYTES,
    Digest,
    Report,
    Target,
    allocate,
    beside,
    disk_error,
    resumable,
)
from openhearth.hub.stream import check_encoding, stream

_MAX_SPAN_BYTES = 64 << 20
_FLUSH_S = 0.5
_SYNC_S = 5.0
_PROGRESS_S = 0.2
_MAX_RESTARTS = 3
_FORGIVING_BYTES = 1 << 16  # a try that brought this much counts as progress


class Download:
    """One run of one transfer into `partial`; `run` once."""

    def __init__(self, target: Target, partial: Path, client: Client, *, num_connections: int,
                 report: Report, patience: Patience = TRANSFER) -> None:
        self._patience = patience
        self._target = target
        self._partial = partial
        self._client = client
        self._num_connections = num_connections
        self._report = report
        self._resumed = 0
        self._note = ""
        self._final_url: str | None = None  # where redirects led, to ask there directly
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._failure: BaseException | None = None
        self._active: set[Answer] = set()
        self._tasks: deque[tuple[int, int]] = deque()

    def run(self) -> Digest:
        """Bring all bytes to the file and return the digest of (at least the front of) them.

        Raises: NetworkError, AccessDenied or ModelNotFound from the server's answers; HashMismatch when the
        size is not the promised one; NotEnoughDisk when a write fails. What arrived is kept and recorded.
        """
        try:
            for _ in range(_MAX_RESTARTS):
                digest = self._attempt()
                if digest is not None:
                    return digest
        except OSError as error:
            raise disk_error(error, self._target.label) from None
        raise NetworkError(f"`{self._target.label}` changes while it is fetched",
                           why=f"{redact(self._target.url)} answered with {_MAX_RESTARTS} different versions")

    def _attempt(self) -> Digest | None:
        """Return the digest when all bytes are there, None when the remote changed and all starts over."""
        found = resumable(self._target, self._partial)
        if self._target.size == 0:
            return self._finish_empty()
        if found and not found[1].missing(found[0].size):
            return self._bring_all(*found, None, None)
        start, end = found[1].missing(found[0].size)[0] if found else (0, self._target.size or CHUNK_BYTES)
        end = min(end, start + CHUNK_BYTES)
        answer = self._ask(start, end)
        if answer.status == 200:
            return stream(self._target, self._partial, self._client, answer, self._report, self._patience)
        if answer.status == 416:
            answer.close()
            if answer.headers.get("Content-Range") == "bytes */0" and not self._target.size:
                return self._finish_empty()
            if found:
                return self._forget()
        span, size = self._check_range(answer, start, end)
        identity = Identity(size, self._target.sha256, self._target.git_sha1, etag_of(answer))
        if found and not _is_same(found[0], identity):
            answer.close()
            return self._forget()
        return self._bring_all(identity, found[1] if found else Ranges(), answer, span)

    def _forget(self) -> None:
        """Drop what an earlier run left: the remote is another file now."""
        beside(self._partial, "journal").unlink(missing_ok=True)
        self._note = "the file has changed at its source: starting over"

    def _finish_empty(self) -> Digest:
        self._partial.unlink(missing_ok=True)
        self._partial.touch()
        return Digest(0)

    def _bring_all(self, identity: Identity, ranges: Ranges, answer: Answer | None,
                   span: tuple[int, int] | None) -> Digest:
        """Open and preallocate the file, start the journal, and let the threads bring what is missing."""
        if not ranges.spans:  # nothing of an earlier run counts, and its links must not be written through
            self._partial.unlink(missing_ok=True)
        fd = os.open(self._partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            allocate(fd, identity.size)
            self._journal = Journal(beside(self._partial, "journal"), identity, ranges)
            try:
                self._resumed = ranges.num_bytes
                return self._share(fd, identity, answer, span)
            finally:
                self._journal.close()
        finally:
            if answer is not None:
                answer.close()
            os.close(fd)

    def _share(self, fd: int, identity: Identity, answer: Answer | None,
               span: tuple[int, int] | None) -> Digest:
        """Share the gaps among threads; hash, record and report from this one until they are done."""
        gaps = self._journal.ranges.missing(identity.size)
        if span:
            gaps[0] = (span[1], gaps[0][1])
        step = max(CHUNK_BYTES, min(_MAX_SPAN_BYTES, -(-identity.size // (4 * self._num_connections))))
        self._tasks.extend((start, min(start + step, end))
                           for low, end in gaps for start in range(low, end, step))
        num_threads = min(self._num_connections, len(self._tasks) + (span is not None))
        threads = [threading.Thread(target=self._work, daemon=True, name=f"range-{number}",
                                    args=(fd, identity, *((answer, span) if number == 0 else (None, None))))
                   for number in range(num_threads)]
        digest = Digest(identity.size)
        synced_s = time.monotonic()
        self._tell(identity.size)
        try:
            for thread in threads:
                thread.start()
            while any(thread.is_alive() for thread in threads):
                self._wake.wait(_PROGRESS_S)
                self._wake.clear()
                with self._lock:
                    prefix = self._journal.ranges.prefix
                digest.advance(fd, min(prefix, digest.position + 64 * CHUNK_BYTES))
                self._tell(identity.size)
                if time.monotonic() - synced_s > _SYNC_S:
                    self._journal.sync(fd)
                    synced_s = time.monotonic()
        finally:
            self._halt(threads)
        if self._failure:
            raise self._failure
        self._journal.sync(fd)
        self._tell(identity.size)
        return digest

    def _halt(self, threads: list[threading.Thread]) -> None:
        """End the threads: no byte is written or recorded after this returns."""
        with self._lock:
            self._stop.set()
            active = list(self._active)
        for answer in active:
            with contextlib.suppress(Exception):  # it may have ended by itself; else its read timeout ends it
                answer.raw.shutdown()
        for thread in threads:
            if thread.ident is not None:
                thread.join(2)

    def _tell(self, total: int) -> None:
        with self._lock:
            done = self._journal.ranges.num_bytes
        self._report("download", done, total, self._resumed, self._note)

    def _work(self, fd: int, identity: Identity, answer: Answer | None, span: tuple[int, int] | None) -> None:
        """Bring span after span until none is left; the first error of any thread stops all."""
        try:
            while not self._stop.is_set():
                if span is None:
                    with self._lock:
                        span = self._tasks.popleft() if self._tasks else None
                if span is None:
                    return
                self._bring(fd, identity, span, answer)
                answer = span = None
        except BaseException as error:
            with self._lock:
                if not self._stop.is_set():
                    self._failure = error
                    self._stop.set()
        finally:
            self._wake.set()

    def _bring(self, fd: int, identity: Identity, span: tuple[int, int], answer: Answer | None) -> None:
        """Bring one span, asking again for what is left after each break."""
        position, end = span
        num_failures = 0
        while position < end and not self._stop.is_set():
            if answer is None:
                answer = self._ask(position, end)
                _, size = self._check_range(answer, position, end)
                if not _is_same(identity, replace(identity, size=size, etag=etag_of(answer))):
                    answer.close()
                    raise NetworkError(f"`{self._target.label}` changed at its source while it was fetched",
                                       hint="run the same command again")
            reached, reason = self._consume(fd, answer, position, end)
            num_failures = 1 if reached - position >= _FORGIVING_BYTES else num_failures + 1
            position, answer = reached, None
            if position < end and not self._stop.is_set():
                wait_s = self._patience.wait_s(num_failures, None)
                if wait_s is None:
                    raise NetworkError(f"`{self._target.label}` broke off {num_failures} times",
                                       why=f"{redact(self._target.url)}: {reason}",
                                       hint="run the same command again: it goes on from here")
                self._stop.wait(wait_s)

    def _consume(self, fd: int, answer: Answer, position: int, end: int) -> tuple[int, str]:
        """Write an answer's body from position on; return the position reached and why it ended."""
        import urllib3

        with self._lock:
            self._active.add(answer)
        held, flushed_s, reason = bytearray(), time.monotonic(), ""
        try:
            while position + len(held) < end and not self._stop.is_set():
                try:
                    piece = answer.raw.read1(min(CHUNK_BYTES, end - position - len(held)))
                    reason = "" if piece else "the body ended early"
                except (urllib3.exceptions.HTTPError, OSError, ValueError, AttributeError) as error:
                    piece, reason = b"", describe(error)  # the last two: the socket was shut down under it
                held += piece
                is_due = len(held) >= CHUNK_BYTES or time.monotonic() - flushed_s > _FLUSH_S
                if held and (is_due or not piece or position + len(held) == end):
                    position += self._write(fd, position, held)
                    held, flushed_s = bytearray(), time.monotonic()
                if not piece:
                    break
            if position == end:
                answer.raw.drain_conn()  # nothing is left: this keeps the connection for the next span
        finally:
            with self._lock:
                self._active.discard(answer)
            answer.close()
        return position, reason

    def _write(self, fd: int, position: int, piece: bytearray) -> int:
        """Write and record a piece; return its length, or 0 when the transfer has been stopped."""
        with self._lock:
            if self._stop.is_set():
                return 0
            view = memoryview(piece)
            while view:
                view = view[os.pwrite(fd, view, position + len(piece) - len(view)):]
            self._journal.mark(position, position + len(piece))
            return len(piece)

    def _ask(self, start: int, end: int) -> Answer:
        """Ask for bytes start..end, where redirects led before if they did; return a 200, 206 or 416."""
        answer = None
        source, final = self._target.url, self._final_url
        if final and final != source:
            answer = self._send(final, start, end)
            if answer.status != 206:  # a signed address has expired: ask the source for a new one
                answer.close()
                answer = None
        answer = answer or self._send(source, start, end)
        if answer.status not in {200, 206, 416}:
            raise error_of(answer, f"`{self._target.label}`")
        check_encoding(self._target, answer)
        self._final_url = answer.url
        return answer

    def _send(self, url: str, start: int, end: int) -> Answer:
        headers = dict(self._target.headers) if origin(url) == origin(self._target.url) else {}
        headers["Range"] = f"bytes={start}-{end - 1}"
        return self._client.open(url, headers=headers, patience=self._patience, stop=self._stop)

    def _check_range(self, answer: Answer, start: int, end: int) -> tuple[tuple[int, int], int]:
        """Return ((start, end), total size) of a 206 answer.

        Raises: NetworkError when it is not (the front of) what was asked for; HashMismatch when the total
        is not the promised size.
        """
        text = answer.headers.get("Content-Range", "")
        match = re.fullmatch(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19})", text)
        length = answer.headers.get("Content-Length", "")
        if answer.status == 206 and match:
            low, high, size = (int(number) for number in match.groups())
            if low == start and low <= high < min(end, size) and length in ("", str(high - low + 1)):
                self._target.check_size(size)
                return (low, high + 1), size
        answer.close()
        raise NetworkError(f"`{self._target.label}`: the server's ranges cannot be trusted",
                           why=f"asked for bytes {start}-{end - 1}; answered status {answer.status}, "
                               f"Content-Range `{text[:80]}`, Content-Length `{length[:20]}`")


def _is_same(before: Identity, now: Identity) -> bool:
    """Return whether two answers are one file: the size, and the etag where no hash will tell at the end."""
    if before.size != now.size:
        return False
    return before.sha256 is not None or before.git_sha1 is not None or before.etag == now.etag
