"""The store: what is visible, what is refused, what is removed."""

import hashlib
import json
import shutil
import stat

import pytest

from openhearth.errors import BadFile, HashMismatch, HearthError, ModelNotFound, Unsupported, UsageError
from openhearth.hub.manifest import Manifest, StoredFile, file_stem, parse_manifest, weights_sha256
from openhearth.hub.store import Store


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def put(store, name, files, weights=None):
    """Store files (path -> bytes) under a name, the way a pull does."""
    stored = {}
    for path, content in files.items():
        part = store.partial / sha256(content)
        part.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(content)
        store.add_blob(part, sha256(content))
        stored[path] = StoredFile(sha256(content), len(content))
    manifest = Manifest(name, stored, (), f"hub:o/{name}", "2026-01-01T00:00:00Z")
    return store.commit(manifest, lambda path: weights or (next(iter(files)),))


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "home")


def test_an_empty_store_has_nothing_and_writes_nothing(store):
    assert store.names() == [] and store.find("x") is None
    assert not store.home.exists()


def test_one_file_is_a_link_and_several_are_a_folder(store):
    single = put(store, "one", {"m.gguf": b"weights"})
    assert single.path.name == "m.gguf" and single.path.is_symlink()
    assert single.path.read_bytes() == b"weights"
    several = put(
        store, "two", {"config.json": b"{}", "sub/model.safetensors": b"w"}, ("sub/model.safetensors",)
    )
    assert several.path.is_dir()
    assert (several.path / "sub" / "model.safetensors").read_bytes() == b"w"
    assert several.weights_sha256 == sha256(b"w")
    assert store.find("two") == several


def test_blobs_are_read_only_and_named_after_their_content(store):
    put(store, "one", {"m.gguf": b"weights"})
    blob = store.blob_path(sha256(b"weights"))
    assert stat.S_IMODE(blob.stat().st_mode) == 0o444
    assert sha256(blob.read_bytes()) == blob.name


def test_the_store_can_be_moved(store, tmp_path):
    put(store, "one", {"sub/m.gguf": b"weights"})
    shutil.move(store.home, tmp_path / "elsewhere")
    assert Store(tmp_path / "elsewhere").find("one").path.read_bytes() == b"weights"


def test_hash_of_several_weights_is_that_of_their_sorted_lines(store):
    found = put(
        store,
        "m",
        {"b.safetensors": b"2", "a.safetensors": b"1", "config.json": b"{}"},
        ("a.safetensors", "b.safetensors"),
    )
    lines = sorted([f"{sha256(b'2')}  b.safetensors\n", f"{sha256(b'1')}  a.safetensors\n"])
    assert found.weights_sha256 == sha256("".join(lines).encode())
    assert weights_sha256({"x": "f" * 64}) == "f" * 64


@pytest.mark.parametrize(
    "digest", ["", "../../../etc/passwd", "A" * 64, "a" * 63, "a" * 65, "a" * 64 + "\n", "sha256:" + "a" * 64]
)
def test_only_a_digest_becomes_a_path(store, digest):
    with pytest.raises(UsageError):
        store.blob_path(digest)


@pytest.mark.parametrize(
    "name",
    [
        "smollm2",
        "hub:owner/name@refs/pr/1:a b.gguf",
        "https://h/x?y=" + "z" * 400,
        "hub:o/n:~x",
        ".hidden",
        "m\u00e9",
    ],
)
def test_any_name_has_a_file_of_its_own_inside_the_store(store, name):
    put(store, name, {"m.gguf": b"weights"})
    assert store.names() == [name]
    assert store.find(name).name == name
    assert [path.parent for path in store.models.iterdir()] == [store.models]
    assert len(file_stem(name).encode()) < 250
    store.remove([name])
    assert store.names() == []


def test_a_shared_blob_survives_the_removal_of_one_model(store):
    put(store, "a", {"m.gguf": b"shared"})
    put(store, "b", {"other.gguf": b"shared"})
    assert store.remove(["a"], is_dry_run=True).num_bytes == 0
    assert store.remove(["a"]).num_bytes == 0
    assert store.find("b").path.read_bytes() == b"shared"
    assert store.remove(["b"]).num_bytes == len(b"shared")
    assert [path for path in store.blobs.rglob("*") if path.is_file()] == []
    assert list(store.snapshots.iterdir()) == []


def test_two_models_removed_at_once_free_what_they_share(store):
    put(store, "a", {"m.gguf": b"shared"})
    put(store, "b", {"m.gguf": b"shared", "x.json": b"own"})
    assert store.remove(["a", "b", "a"], is_dry_run=True).num_bytes == len(b"shared") + len(b"own")
    assert store.names() == ["a", "b"]
    assert store.remove(["a", "b"]).num_bytes == len(b"shared") + len(b"own")


def test_equal_models_share_their_folder_of_links(store):
    first, second = (put(store, name, {"m.gguf": b"same"}) for name in "ab")
    assert first.path == second.path
    store.remove(["a"])
    assert store.find("b").path.read_bytes() == b"same"


def test_removing_while_a_file_is_open_leaves_the_reader_alone(store):
    found = put(store, "a", {"m.gguf": b"weights"})
    with open(found.path, "rb") as file:
        store.remove(["a"])
        assert file.read() == b"weights"


def test_nothing_is_removed_when_one_name_is_unknown(store):
    put(store, "a", {"m.gguf": b"weights"})
    with pytest.raises(ModelNotFound):
        store.remove(["a", "absent"])
    assert store.find("a")


@pytest.mark.parametrize("damage", ["missing", "short", "long"])
def test_a_blob_of_another_size_is_named_with_the_command_that_repairs(store, damage):
    put(store, "a", {"m.gguf": b"weights"})
    blob = store.blob_path(sha256(b"weights"))
    blob.chmod(0o644)
    if damage == "missing":
        blob.unlink()
    else:
        blob.write_bytes(b"w" if damage == "short" else b"weights and more")
    with pytest.raises(BadFile) as caught:
        store.find("a")
    assert caught.value.hint == "hearth pull a" and "m.gguf" in caught.value.why


def test_lost_or_foreign_links_are_put_right_on_the_next_look(store):
    found = put(store, "a", {"m.gguf": b"weights"})
    other = put(store, "b", {"m.gguf": b"1234567"})
    found.path.unlink()
    found.path.symlink_to(other.path.resolve())
    assert store.find("a").path.read_bytes() == b"weights"
    shutil.rmtree(store.snapshots)
    assert store.find("a").path.read_bytes() == b"weights"


def test_verify_tells_right_from_wrong_and_sets_the_wrong_aside(store):
    put(store, "a", {"m.gguf": b"weights", "config.json": b"{}"})
    assert store.verify("a") == {"m.gguf": True, "config.json": True}
    blob = store.blob_path(sha256(b"weights"))
    blob.chmod(0o644)
    blob.write_bytes(b"Weights")
    assert store.find("a")
    assert store.verify("a") == {"m.gguf": False, "config.json": True}
    with pytest.raises(BadFile):
        store.find("a")


def valid_record():
    manifest = Manifest(
        "m", {"m.gguf": StoredFile("a" * 64, 1)}, ("m.gguf",), "hub:o/n", "2026-01-01T00:00:00Z"
    )
    return json.loads(manifest.to_json())


def test_a_manifest_is_read_back_as_it_was_written():
    manifest = Manifest(
        "m",
        {"b": StoredFile("b" * 64, 2), "a/c": StoredFile("a" * 64, 0)},
        ("b",),
        "index:x==1:b",
        "2026-01-01T00:00:00Z",
        "1",
        "MIT",
    )
    assert parse_manifest("m", manifest.to_json()) == manifest


@pytest.mark.parametrize(
    "change",
    [
        {"files": {"../../etc/passwd": {"sha256": "a" * 64, "size": 1}}},
        {"files": {"/etc/passwd": {"sha256": "a" * 64, "size": 1}}},
        {"files": {"m.gguf": {"sha256": "../" * 21 + "a", "size": 1}}},
        {"files": {"m.gguf": {"sha256": "A" * 64, "size": 1}}},
        {"files": {"m.gguf": {"sha256": "a" * 64, "size": -1}}},
        {"files": {"m.gguf": {"sha256": "a" * 64, "size": True}}},
        {"files": {"m.gguf": {"sha256": "a" * 64, "size": 1}, "m.gguf/x": {"sha256": "a" * 64, "size": 1}}},
        {"files": {}},
        {"files": []},
        {"files": None},
        {"weights": ["other"]},
        {"weights": []},
        {"weights": 3},
        {"name": "another"},
        {"source": 3},
        {"schema": "1"},
        {"schema": None},
        {"licence": ["MIT"]},
    ],
)
def test_a_malformed_manifest_is_refused_with_the_command_that_repairs(change):
    with pytest.raises(BadFile) as caught:
        parse_manifest("m", json.dumps({**valid_record(), **change}).encode())
    assert caught.value.hint == "hearth pull m"


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b"null"])
def test_a_manifest_that_is_no_record_is_refused(raw):
    with pytest.raises(BadFile):
        parse_manifest("m", raw)


def test_a_manifest_of_another_version_is_refused_by_number():
    with pytest.raises(Unsupported, match="schema version 2"):
        parse_manifest("m", json.dumps({**valid_record(), "schema": 2}).encode())


def test_blobs_of_an_unreadable_or_newer_manifest_are_kept(store):
    put(store, "a", {"m.gguf": b"shared"})
    put(store, "b", {"m.gguf": b"shared"})
    path = store.models / "b.json"
    path.write_text(path.read_text().replace('"schema": 1', '"schema": 2'))
    store.remove(["a"])
    assert store.blob_size(sha256(b"shared")) == len(b"shared")
    path.write_bytes(path.read_bytes()[:-20])
    put(store, "a", {"m.gguf": b"shared"})
    store.remove(["a"])
    assert store.blob_size(sha256(b"shared")) == len(b"shared")


def test_a_damaged_model_is_listed_and_can_be_removed(store):
    put(store, "a", {"m.gguf": b"weights"})
    (store.models / "a.json").write_bytes(b"{" + sha256(b"weights").encode())
    assert store.names() == ["a"]
    assert store.remove(["a"]).num_bytes == len(b"weights")
    assert store.names() == []


def test_what_inspection_refuses_never_becomes_visible_and_leaves_no_bytes(store):
    put(store, "kept", {"m.gguf": b"shared"})

    def refuse(path):
        assert (path / "m.gguf").read_bytes() == b"shared"
        raise HashMismatch("not a model")

    files = {}
    for path, content in {"m.gguf": b"shared", "x.json": b"own"}.items():
        part = store.partial / path
        part.write_bytes(content)
        store.add_blob(part, sha256(content))
        files[path] = StoredFile(sha256(content), len(content))
    with pytest.raises(HashMismatch):
        store.commit(Manifest("bad", files, (), "s", ""), refuse)
    assert store.names() == ["kept"] and store.blob_size(sha256(b"own")) is None
    assert store.find("kept").path.read_bytes() == b"shared"
    assert len(list(store.snapshots.iterdir())) == 1


def test_a_missing_blob_stops_the_commit(store):
    with pytest.raises(FileNotFoundError):
        store.commit(
            Manifest("m", {"m.gguf": StoredFile("a" * 64, 1)}, (), "s", ""), lambda path: ("m.gguf",)
        )
    assert store.names() == []


def test_a_store_that_is_a_file_is_refused_with_a_way_out(tmp_path):
    (tmp_path / "home").write_text("not a folder")
    store = Store(tmp_path / "home")
    assert store.names() == [] and store.find("x") is None
    part = tmp_path / "part"
    part.write_bytes(b"x")
    with pytest.raises(HearthError) as caught:
        store.add_blob(part, sha256(b"x"))
    assert "HEARTH_HOME" in caught.value.hint
    assert part.read_bytes() == b"x"
