"""A model hub, a package index and a plain file server on localhost, with faults to switch on.

Speaks what stock `huggingface_hub` and `pip` ask for: model info, tree with pages, `resolve` with redirects
to storage for large files, PEP 503 and PEP 691 project pages. Counts the body bytes served per path and
records every request with its headers.
"""

import hashlib
import json
import re
import socket
import ssl
import sys
import threading
import time
import zipfile
from collections import Counter
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit

CERTIFICATE = Path(__file__).parent / "tls" / "cert.pem"
"""Self-signed, for 127.0.0.1 and localhost; its key lies beside it and protects nothing."""


@dataclass
class Faults:
    """What goes wrong from now on; change fields at any time. Counters go down as they strike.

    drop_after: each file body is cut after that many bytes, num_drops times (-1: always). fail_statuses:
    answered once each, to file requests, before anything else, with retry_after when set. delay_s: before
    each 64 KiB.
    """

    has_ranges: bool = True
    has_head: bool = True
    drop_after: int | None = None
    num_drops: int = -1
    delay_s: float = 0.0
    fail_statuses: list[int] = field(default_factory=list)
    retry_after: str | None = None
    wrong_content_range: bool = False
    extra_bytes: int = 0
    content_encoding: str | None = None
    is_chunked: bool = False
    redirect_to: str | None = None
    redirect_large: bool = False
    expire_signed: int = 0


@dataclass
class Repo:
    """A repository: revision name -> commit, commit -> path -> bytes."""

    refs: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    card: dict = field(default_factory=dict)
    tags: list[str] = field(default_factory=list)
    token: str | None = None
    is_gated: bool = False


def git_blob_id(body: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()


def is_large(path: str, body: bytes) -> bool:
    """Which files live in LFS: weights, as on the public hub."""
    return path.endswith((".safetensors", ".gguf", ".bin")) or len(body) > 10_000_000


class HubServer:
    """Two HTTP servers: the hub itself (`url`) and its storage on another port, so another origin.

    Use as a context manager. served: body bytes written per path; requests: (method, path, headers).
    """

    def __init__(self, *, page_size: int = 1000, is_tls: bool = False) -> None:
        self.page_size = page_size
        self.is_tls = is_tls
        self.faults = Faults()
        self.repos: dict[str, Repo] = {}
        self.files: dict[str, bytes] = {}
        self.etags: dict[str, str] = {}
        self.content_types: dict[str, str] = {}
        self.wheels: dict[str, list[dict]] = {}
        self.index_format = "json"
        self.index_auth: str | None = None
        self.lying_sha256: dict[str, str] = {}
        self.lying_next: str | None = None
        self.served: Counter[str] = Counter()
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.lock = threading.Lock()
        self.num_active = self.peak_active = 0
        self._servers = [self._serve(is_storage) for is_storage in (False, True)]
        self.url, self.storage_url = (
            f"{'https' if is_tls else 'http'}://127.0.0.1:{server.server_port}" for server in self._servers)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def _serve(self, is_storage: bool) -> ThreadingHTTPServer:
        handler = type("Handler", (_Handler,), {"hub": self, "is_storage": is_storage})
        server = _Server(("127.0.0.1", 0), handler)
        if self.is_tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(CERTIFICATE, CERTIFICATE.with_name("key.pem"))
            server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return server

    def add_repo(self, name: str, files: dict[str, bytes], *, revision: str = "main", **settings) -> str:
        """Add a commit to a repository under a revision; returns the commit's 40 hex digits."""
        repo = self.repos.setdefault(name, Repo())
        for key, value in settings.items():
            setattr(repo, key, value)
        listing = "".join(f"{path} {git_blob_id(body)}\n" for path, body in sorted(files.items()))
        commit = hashlib.sha1((name + revision + listing).encode()).hexdigest()
        repo.refs[revision] = commit
        repo.commits[commit] = dict(files)
        return commit

    def add_file(self, path: str, body: bytes, etag: str | None = None) -> str:
        """Serve bytes at a path of the hub's port; returns the address. With etag '' none is sent."""
        self.files[path] = body
        self.etags[path] = hashlib.md5(body).hexdigest() if etag is None else etag
        return self.url + path

    def add_wheel(self, dist: str, version: str, members: dict[str, bytes], *, yanked: bool = False,
                  compress: int = zipfile.ZIP_DEFLATED, tag: str = "py3-none-any",
                  body: bytes | None = None) -> bytes:
        """Put an installable wheel on the index (served below /simple/ and /packages/); returns its bytes."""
        module = dist.replace("-", "_")
        if body is None:
            buffer = BytesIO()
            meta = f"{module}-{version}.dist-info"
            metadata = f"Metadata-Version: 2.1\nName: {dist}\nVersion: {version}\n"
            extra = {f"{meta}/METADATA": metadata.encode(),
                     f"{meta}/WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n".encode(),
                     f"{meta}/RECORD": b""}
            with zipfile.ZipFile(buffer, "w", compress) as archive:
                for path, content in {**members, **extra}.items():
                    archive.writestr(path, content)
            body = buffer.getvalue()
        name = f"{module}-{version}-{tag}.whl"
        self.add_file(f"/packages/{name}", body)
        self.wheels.setdefault(re.sub(r"[-_.]+", "-", dist).lower(), []).append(
            {"filename": name, "url": f"../../packages/{name}", "size": len(body), "yanked": yanked,
             "hashes": {"sha256": hashlib.sha256(body).hexdigest()}})
        return body

    def total_served(self) -> int:
        """Body bytes of files (not of listings) written so far."""
        with self.lock:
            return sum(count for path, count in self.served.items()
                       if not path.startswith(("/api/", "/simple/")))

    def settle(self) -> None:
        """Wait until no body is being written, as after a client has gone away."""
        while self.num_active:
            time.sleep(0.005)

    def headers_of(self, path_part: str) -> list[dict[str, str]]:
        """Headers (lower-case names) of the requests whose path contains a text."""
        with self.lock:
            return [headers for _, path, headers in self.requests if path_part in path]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def get_request(self):
        """Accept with a small send buffer, so that what was served is close to what has arrived."""
        connection, address = super().get_request()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
        return connection, address

    def handle_error(self, request, client_address):
        """Clients that go away are what these tests are about; anything else is a mistake here."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubServer
    is_storage = False

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self._answer()

    def do_GET(self):
        self._answer()

    def _answer(self):
        hub = self.hub
        with hub.lock:
            hub.requests.append((self.command, self.path, {k.lower(): v for k, v in self.headers.items()}))
        parts = urlsplit(self.path)
        path = unquote(parts.path)
        with hub.lock:
            hub.num_active += 1
            hub.peak_active = max(hub.peak_active, hub.num_active)
        try:
            if path in hub.files and not path.startswith("/storage/"):
                headers = {"ETag": f'"{hub.etags[path]}"'} if hub.etags[path] else {}
                if path in hub.content_types:
                    headers["Content-Type"] = hub.content_types[path]
                self._file(path, hub.files[path], headers)
            elif path.startswith(("/api/models/", "/api/datasets/")):
                self._api(parts, path)
            elif "/resolve/" in path:
                self._resolve(parts, path)
            elif path.startswith("/simple/"):
                self._index(path)
            elif path.startswith("/storage/") and self.is_storage:
                self._storage(parts, path)
            else:
                self._send(404, b"not found")
        except ConnectionError:
            self.close_connection = True
        finally:
            with hub.lock:
                hub.num_active -= 1

    # -- hub API

    def _repo(self, name):
        """The repository, or None after an error was sent."""
        repo = self.hub.repos.get(name)
        if repo is None:
            self._error(404, "RepoNotFound", "Repository not found")
            return None
        if repo.token and not repo.is_gated and self.headers.get("Authorization") != f"Bearer {repo.token}":
            self._error(401, "RepoNotFound", "Invalid username or password.")
            return None
        return repo

    def _api(self, parts, path):
        raw = parts.path.removeprefix("/api/").removeprefix("models/")
        match = re.fullmatch(r"((?:datasets/(?=[^/]+/[^/]+/))?[^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", raw)
        repo = self._repo(match[1]) if match else self._error(404, "EntryNotFound", "no such route")
        if repo is None:
            return
        revision = unquote(match[3] or "main")
        commit = revision if revision in repo.commits else repo.refs.get(revision)
        if commit is None:
            self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return
        files = repo.commits[commit]
        if match[2] == "tree":
            self._tree(match[1], commit, files, parse_qs(parts.query))
            return
        info = {"id": match[1], "modelId": match[1], "sha": commit, "private": bool(repo.token),
                "gated": "manual" if repo.is_gated else False, "tags": repo.tags, "cardData": repo.card,
                "downloads": 0, "likes": 0, "siblings": [{"rfilename": name} for name in files]}
        self._send(200, json.dumps(info).encode(), {"Content-Type": "application/json"})

    def _tree(self, name, commit, files, query):
        entries = []
        for path, body in sorted(files.items()):
            entry = {"type": "file", "path": path, "size": len(body), "oid": git_blob_id(body)}
            if is_large(path, body):
                sha256 = self.hub.lying_sha256.get(path, hashlib.sha256(body).hexdigest())
                entry["lfs"] = {"oid": sha256, "size": len(body), "pointerSize": 130}
                entry["oid"] = hashlib.sha1(sha256.encode()).hexdigest()  # stands for the pointer's id
            entries.append(entry)
        folders = sorted({path.rpartition("/")[0] for path in files if "/" in path})
        entries += [{"type": "directory", "path": folder, "oid": "0" * 40} for folder in folders]
        start = int(query.get("cursor", ["0"])[0])
        headers = {"Content-Type": "application/json"}
        if start + self.hub.page_size < len(entries):
            kind = "" if name.startswith("datasets/") else "models/"
            page = f"{self.hub.url}/api/{kind}{name}/tree/{commit}?recursive=true"
            following = self.hub.lying_next or f"{page}&cursor={start + self.hub.page_size}"
            headers["Link"] = f'<{following}>; rel="next"'
        self._send(200, json.dumps(entries[start:start + self.hub.page_size]).encode(), headers)

    def _resolve(self, parts, path):
        name, _, rest = path.removeprefix("/").partition("/resolve/")
        repo = self._repo(name)
        if repo is None:
            return
        revision, _, file = rest.partition("/")
        commit = revision if revision in repo.commits else repo.refs.get(revision)
        if commit is None:
            self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return
        if repo.is_gated and self.headers.get("Authorization") != f"Bearer {repo.token}":
            status = 403 if "Authorization" in self.headers else 401
            self._error(status, "GatedRepo", "Access to this model is restricted")
            return
        body = repo.commits[commit].get(file)
        if body is None:
            self._error(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": commit})
            return
        headers = {"X-Repo-Commit": commit}
        if is_large(file, body) and self.hub.faults.redirect_large:
            sha256 = hashlib.sha256(body).hexdigest()
            self.hub.files[f"/storage/{sha256}"] = body
            signed = f"{self.hub.storage_url}/storage/{sha256}?signature=s{len(self.hub.requests)}"
            headers |= {"X-Linked-Etag": f'"{sha256}"', "X-Linked-Size": str(len(body)), "Location": signed}
            self._send(302, b"", headers)
            return
        etag = hashlib.sha256(body).hexdigest() if is_large(file, body) else git_blob_id(body)
        self._file(path, body, {**headers, "ETag": f'"{etag}"'})

    def _storage(self, parts, path):
        """Signed addresses: refused when they expire; any Authorization header is a leak and is refused."""
        faults = self.hub.faults
        if "Authorization" in self.headers or "signature" not in parse_qs(parts.query):
            self._send(400, b"unexpected credentials")
        elif faults.expire_signed and self._strike("expire_signed"):
            self._send(403, b"expired")
        else:
            body = self.hub.files[path]
            self._file(path, body, {"ETag": f'"{hashlib.md5(body).hexdigest()}-1"'})

    # -- package index

    def _index(self, path):
        if self.hub.index_auth and self.headers.get("Authorization") != self.hub.index_auth:
            self._send(401, b"", {"WWW-Authenticate": 'Basic realm="index"'})
            return
        name = path.removeprefix("/simple/").strip("/")
        wheels = self.hub.wheels.get(name)
        if wheels is None:
            self._send(404, b"no such project")
        elif self.hub.index_format == "json" and "vnd.pypi.simple.v1+json" in self.headers.get("Accept", ""):
            page = {"meta": {"api-version": "1.1"}, "name": name, "files": wheels,
                    "versions": sorted({wheel["filename"].split("-")[1] for wheel in wheels})}
            kind = "application/vnd.pypi.simple.v1+json"
            self._send(200, json.dumps(page).encode(), {"Content-Type": kind})
        else:
            links = "".join(
                f'<a href="{quote(wheel["url"])}#sha256={wheel["hashes"]["sha256"]}"'
                f'{" data-yanked=broken" if wheel["yanked"] else ""}>{wheel["filename"]}</a><br>\n'
                for wheel in wheels)
            self._send(200, f"<!DOCTYPE html><html><body>\n{links}</body></html>".encode(),
                       {"Content-Type": "text/html; charset=utf-8"})

    # -- bodies

    def _strike(self, name):
        """Count a fault down; True when it strikes now."""
        with self.hub.lock:
            left = getattr(self.hub.faults, name)
            if left > 0:
                setattr(self.hub.faults, name, left - 1)
            return left != 0

    def _file(self, path, body, headers):
        faults = self.hub.faults
        with self.hub.lock:
            status = faults.fail_statuses.pop(0) if faults.fail_statuses else None
        if status:
            self._send(status, b"fault", {"Retry-After": faults.retry_after} if faults.retry_after else {})
            return
        if faults.redirect_to:
            self._send(302, b"", {"Location": faults.redirect_to})
            return
        if self.command == "HEAD" and not faults.has_head:
            self._send(405, b"")
            return
        headers = {"Last-Modified": formatdate(1_700_000_000, usegmt=True), **headers}
        start, end, status = 0, len(body), 200
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if faults.has_ranges:
            headers["Accept-Ranges"] = "bytes"
            if wanted:
                start, end = int(wanted[1]), min(int(wanted[2]) + 1 if wanted[2] else len(body), len(body))
                if start >= len(body):
                    self._send(416, b"", {"Content-Range": f"bytes */{len(body)}"})
                    return
                shown = start + 1 if faults.wrong_content_range else start
                status, headers["Content-Range"] = 206, f"bytes {shown}-{end - 1}/{len(body)}"
        if faults.content_encoding:
            headers["Content-Encoding"] = faults.content_encoding
        self._body(path, status, headers, body[start:end] + b"x" * faults.extra_bytes, faults)

    def _body(self, path, status, headers, body, faults):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if faults.is_chunked:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        cut = len(body)
        if faults.drop_after is not None and cut > faults.drop_after and self._strike("num_drops"):
            cut = faults.drop_after
        for at in range(0, cut, 1 << 16):
            if faults.delay_s:
                time.sleep(faults.delay_s)
            piece = body[at:min(at + (1 << 16), cut)]
            with self.hub.lock:
                self.hub.served[path] += len(piece)
            self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece) if faults.is_chunked else piece)
        if cut < len(body):
            self.close_connection = True
            self.connection.shutdown(2)
        elif faults.is_chunked:
            self.wfile.write(b"0\r\n\r\n")

    def _error(self, status, code, message, headers=None):
        self._send(status, json.dumps({"error": message}).encode(),
                   {"X-Error-Code": code, "X-Error-Message": message, "Content-Type": "application/json",
                    **(headers or {})})

    def _send(self, status, body, headers=None):
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
            with self.hub.lock:
                self.hub.served[urlsplit(self.path).path] += len(body)
