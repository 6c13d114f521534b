"""The whole body as one stream, for servers without ranges: a break starts over, nothing is resumable."""

from __future__ import annotations

import re
import time
from pathlib import Path

from openhearth.errors import HashMismatch, HearthError, NetworkError
from openhearth.hub.http import Answer, Client, Patience, describe, error_of, redact
from openhearth.hub.partial import CHUNK_BYTES, Digest, Report, Target, allocate, disk_error, remove

NOTE = "the server has no ranges: one stream, and a break starts over"


def stream(target: Target, partial: Path, client: Client, answer: Answer, report: Report,
           patience: Patience) -> Digest:
    """Write the body of `answer` (status 200) to partial and return its digest.

    Raises: NetworkError after several breaks; HashMismatch when the length is not the promised one;
    NotEnoughDisk. After an error nothing is left.
    """
    num_failures = 0
    try:
        while True:
            remove(partial)
            length = answer.headers.get("Content-Length", "")
            size = int(length) if re.fullmatch(r"\d{1,19}", length) else target.size
            try:
                digest, reason = _copy(target, partial, answer, size, report)
            finally:
                answer.close()
            if not reason:
                return digest
            num_failures += 1
            wait_s = patience.wait_s(num_failures, None)
            if wait_s is None:
                raise NetworkError(f"`{target.label}` broke off {num_failures} times",
                                   why=f"{redact(target.url)}: {reason}; the server has no ranges, so each "
                                       "try starts over")
            time.sleep(wait_s)
            answer = client.open(target.url, headers=target.headers, patience=patience)
            if answer.status != 200:
                raise error_of(answer, f"`{target.label}`")
            check_encoding(target, answer)
    except OSError as error:
        remove(partial)
        raise disk_error(error, target.label, is_kept=False) from None
    except HearthError:
        remove(partial)
        raise


def check_encoding(target: Target, answer: Answer) -> None:
    """Raises: NetworkError when the body is compressed although the plain bytes were asked for."""
    encoding = answer.headers.get("Content-Encoding", "identity")
    if encoding != "identity":
        answer.close()
        raise NetworkError(f"`{target.label}` arrives with Content-Encoding {encoding[:40]}",
                           why="the plain bytes were asked for; a changed body cannot be resumed or checked")


def _copy(target: Target, partial: Path, answer: Answer, size: int | None,
          report: Report) -> tuple[Digest, str]:
    """Copy one body; return its digest and why it broke off ("" when it is whole)."""
    import urllib3

    if size is not None:
        target.check_size(size)
    digest = Digest(size)
    with partial.open("xb") as file:
        allocate(file.fileno(), size or 0)
        while True:
            try:
                piece = answer.raw.read1(CHUNK_BYTES)
            except urllib3.exceptions.HTTPError as error:
                return digest, describe(error)
            if not piece:
                break
            file.write(piece)
            digest.update(piece)
            if size is not None and digest.position > size:
                raise HashMismatch(f"`{target.label}` is longer than the {size} bytes promised",
                                   why=f"source: {redact(target.url)}")
            report("download", digest.position, size, 0, NOTE)
    is_whole = size is None or digest.position == size
    return digest, "" if is_whole else "the body ended early"
