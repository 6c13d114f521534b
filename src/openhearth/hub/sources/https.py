"""A single file at an address: `https://host/model.gguf`, or http on this machine.

`#sha256=<hex>` at the end of the address pins the bytes.
"""

from __future__ import annotations

import email.message
import re
from pathlib import PurePosixPath
from urllib.parse import unquote, urldefrag, urlsplit

from openhearth.config import Config
from openhearth.errors import Offline, UsageError
from openhearth.hub.http import Answer, Client, error_of, is_loopback, origin, redact, split_auth
from openhearth.hub.paths import check_path, refuse_pickle
from openhearth.hub.records import Listing, Ref, RemoteFile


def list_files(ref: Ref, config: Config) -> Listing:
    """Return the one file at an address with its size, from HEAD or a GET of its first byte.

    Raises: UsageError for plain http to another machine; Offline; UnsafeFile for a pickle; NetworkError,
    ModelNotFound and AccessDenied from the server.
    """
    origin(ref.location)  # refuses what is no address
    address, fragment = urldefrag(ref.location)
    url, headers = split_auth(address)
    scheme = urlsplit(url).scheme.lower()
    if scheme != "https" and not (scheme == "http" and is_loopback(url)):
        raise UsageError(f"`{redact(url)}` is not an https address",
                         why="plain http is only used for this machine", hint="https://...")
    pin = re.fullmatch(r"sha256=([0-9a-fA-F]{64})", fragment)
    if fragment and not pin:
        raise UsageError(f"`#{fragment[:80]}` at the end of the address",
                         why="expected #sha256=<64 hex digits>")
    if config.is_offline:
        raise Offline(f"HEARTH_OFFLINE is set and `{redact(url)}` would have been fetched",
                      hint="HEARTH_OFFLINE=0")
    refuse_pickle(unquote(urlsplit(url).path))
    client = Client(config)
    try:
        answer = client.open(url, method="HEAD", headers=headers)
        if answer.status in {400, 403, 404, 405, 501}:  # an address may be signed for GET alone
            answer.close()
            answer = client.open(url, headers={**headers, "Range": "bytes=0-0"})
        if answer.status not in {200, 206, 416}:
            raise error_of(answer, f"`{redact(url)}`")
        answer.close()
    finally:
        client.close()
    path = check_path(refuse_pickle(_file_name(url, answer)), redact(url))
    file = RemoteFile(path, url, size=_size(answer), sha256=pin[1].lower() if pin else None, headers=headers)
    return Listing(source=url + (f"#sha256={file.sha256}" if pin else ""), files=(file,))


def _file_name(url: str, answer: Answer) -> str:
    """Return the address's last part, or what Content-Disposition (RFC 6266) says when that has no suffix."""
    name = unquote(urlsplit(url).path).rpartition("/")[2]
    if not PurePosixPath(name).suffix and (text := answer.headers.get("Content-Disposition")):
        message = email.message.Message()
        message["Content-Disposition"] = text
        name = message.get_filename() or name
    return name


def _size(answer: Answer) -> int | None:
    if answer.status in {206, 416}:
        text = answer.headers.get("Content-Range", "").rpartition("/")[2]
    else:
        text = "" if "Content-Encoding" in answer.headers else answer.headers.get("Content-Length", "")
    return int(text) if re.fullmatch(r"\d{1,19}", text) else None
