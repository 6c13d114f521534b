"""Listing a hub repository: what is chosen, what is refused, where the token goes."""

import hashlib

import pytest
from support.hub_server import HubServer, git_blob_id
from support.transfers import config_for, isolate_pip, random_bytes

from openhearth.errors import (
    AccessDenied,
    BadFile,
    ModelNotFound,
    NetworkError,
    Offline,
    UnsafeFile,
    UsageError,
)
from openhearth.hub.records import Ref
from openhearth.hub.sources.hub import list_files
from openhearth.hub.transfer import fetch

WEIGHTS = random_bytes(1000)


@pytest.fixture
def server(monkeypatch, tmp_path):
    isolate_pip(monkeypatch, tmp_path)
    with HubServer() as server:
        yield server


def listed(server, tmp_path, *, revision=None, file=None, name="o/n", **env):
    return list_files(Ref("hub", name, revision, file), config_for(server, tmp_path, **env))


def paths(listing):
    return [remote.path for remote in listing.files]


def test_a_model_is_what_is_needed_to_run_it(server, tmp_path):
    needed = ["LICENSE", "README.md", "additional_chat_templates/tools.jinja", "chat_template.jinja",
              "config.json", "generation_config.json", "merges.txt", "model-00001-of-00002.safetensors",
              "model-00002-of-00002.safetensors", "model.safetensors.index.json", "special_tokens_map.json",
              "tokenizer.json", "tokenizer_config.json", "vocab.json"]
    other = [".gitattributes", "consolidated.safetensors", "model.fp16.safetensors", "pytorch_model.bin",
             "onnx/model.onnx", "original/model.safetensors", "model-Q4.gguf", "image.png", "modeling_x.py",
             "flax_model.msgpack", "runs/events"]
    server.add_repo("o/n", {path: WEIGHTS for path in [*needed, *other]})
    listing = listed(server, tmp_path)
    assert paths(listing) == needed


def test_every_file_has_a_hash_and_the_address_of_its_commit(server, tmp_path):
    commit = server.add_repo("o/n", {"config.json": b"{}", "model.safetensors": WEIGHTS})
    config, weights = listed(server, tmp_path).files
    assert (config.size, config.sha256, config.git_sha1) == (2, None, git_blob_id(b"{}"))
    assert (weights.size, weights.git_sha1) == (1000, None)
    assert weights.sha256 == hashlib.sha256(WEIGHTS).hexdigest()
    assert weights.url == f"{server.url}/o/n/resolve/{commit}/model.safetensors"


def test_a_branch_that_moves_after_listing_mixes_nothing(server, tmp_path):
    server.add_repo("o/n", {"config.json": b"{}", "model.safetensors": WEIGHTS})
    listing = listed(server, tmp_path)
    server.add_repo("o/n", {"config.json": b"[]", "model.safetensors": WEIGHTS[::-1]})
    config = config_for(server, tmp_path)
    for remote in listing.files:
        fetch(remote, tmp_path / remote.path, config=config)
    assert (tmp_path / "config.json").read_bytes() == b"{}"
    assert (tmp_path / "model.safetensors").read_bytes() == WEIGHTS
    assert listed(server, tmp_path, revision=listing.revision).files == listing.files
    assert listed(server, tmp_path).revision != listing.revision


def test_revisions_with_slashes_are_one_part_of_the_address(server, tmp_path):
    server.add_repo("o/n", {"model.safetensors": WEIGHTS}, revision="refs/pr/1")
    assert paths(listed(server, tmp_path, revision="refs/pr/1")) == ["model.safetensors"]
    assert any("/revision/refs%2Fpr%2F1" in path for _, path, _ in server.requests)


def test_pages_are_followed_on_the_endpoint_only(server, tmp_path):
    server.page_size = 3
    files = {f"model-{i:05}-of-00010.safetensors": WEIGHTS for i in range(1, 11)}
    server.add_repo("o/n", files)
    assert paths(listed(server, tmp_path)) == sorted(files)
    with HubServer() as other:
        for target in (f"{other.url}/api/models/o/n/tree/x", "http://evil.example/next"):
            server.lying_next = target
            with pytest.raises(NetworkError, match="not on the endpoint"):
                listed(server, tmp_path, HF_TOKEN="secret")
        assert other.requests == []


@pytest.mark.parametrize("card,tags,licence", [
    ({"license": "apache-2.0"}, [], "apache-2.0"), ({}, ["x", "license:mit"], "mit"), ({}, [], None),
    ({"license": "other", "license_name": "llama3.1"}, ["license:other"], "llama3.1"),
    ({"license": ["mit", "apache-2.0"]}, [], "mit OR apache-2.0"), ({"license": 7}, [], None)])
def test_the_licence_comes_from_the_card_or_the_tags(server, tmp_path, card, tags, licence):
    server.add_repo("o/n", {"model.safetensors": WEIGHTS}, card=card, tags=tags)
    assert listed(server, tmp_path).licence == licence


# -- GGUF


def test_a_single_gguf_is_the_model(server, tmp_path):
    server.add_repo("o/n", {"m-Q4_K_M.gguf": WEIGHTS, "mmproj-m.gguf": WEIGHTS, "README.md": b"",
                            "x.png": b""})
    assert paths(listed(server, tmp_path)) == ["README.md", "m-Q4_K_M.gguf"]


def test_several_ggufs_need_a_choice_and_the_message_makes_it_easy(server, tmp_path):
    server.add_repo("o/n", {"m-Q8_0.gguf": bytes(3 << 20), "m-Q4_K_M.gguf": bytes(2 << 20),
                            "m-F16.gguf": WEIGHTS})
    with pytest.raises(UsageError) as caught:
        listed(server, tmp_path, revision="main")
    text = str(caught.value)
    assert "3 GGUF files" in text and "3.0 MiB  m-Q8_0.gguf" in text
    assert caught.value.hint == "hearth pull hub:o/n@main:m-Q4_K_M.gguf"
    assert paths(listed(server, tmp_path, file="m-Q4_K_M.gguf")) == ["m-Q4_K_M.gguf"]
    assert paths(listed(server, tmp_path, file="*F16*")) == ["m-F16.gguf"]
    with pytest.raises(UsageError, match="2 GGUF files"):
        listed(server, tmp_path, file="m-Q*.gguf")


def test_the_parts_of_a_split_gguf_come_together(server, tmp_path):
    parts = [f"big-{i:05}-of-00003.gguf" for i in (1, 2, 3)]
    server.add_repo("o/n", {path: WEIGHTS for path in parts})
    assert paths(listed(server, tmp_path)) == parts
    assert paths(listed(server, tmp_path, file=parts[0])) == parts


# -- refusals


def test_pickles_are_refused_by_name(server, tmp_path):
    server.add_repo("o/n", {"config.json": b"{}", "pytorch_model.bin": WEIGHTS})
    with pytest.raises(UnsafeFile, match="only as pickles"):
        listed(server, tmp_path)
    with pytest.raises(UnsafeFile, match="is a pickle"):
        listed(server, tmp_path, file="pytorch_model.bin")
    with pytest.raises(UnsafeFile, match="pickles only"):
        listed(server, tmp_path, file="pytorch_*")


def test_missing_things_are_told_apart(server, tmp_path):
    server.add_repo("o/n", {"model.safetensors": WEIGHTS})
    server.add_repo("o/empty", {"notes.txt": b""})
    with pytest.raises(ModelNotFound, match="no such repository"):
        listed(server, tmp_path, name="o/none")
    with pytest.raises(ModelNotFound, match="no such revision"):
        listed(server, tmp_path, revision="v9")
    with pytest.raises(ModelNotFound, match=r"nearest: `model\.safetensors`"):
        listed(server, tmp_path, file="model.safetensor")
    with pytest.raises(ModelNotFound, match="has no weights"):
        listed(server, tmp_path, name="o/empty")


def test_a_private_repository_wants_the_token(server, tmp_path):
    server.add_repo("o/n", {"model.safetensors": WEIGHTS}, token="good")
    for env in ({}, {"HF_TOKEN": "bad"}):
        with pytest.raises(ModelNotFound, match="HF_TOKEN"):
            listed(server, tmp_path, **env)
    assert paths(listed(server, tmp_path, HF_TOKEN="good")) == ["model.safetensors"]


def test_a_gated_repository_says_what_to_do(server, tmp_path):
    server.add_repo("o/n", {"model.safetensors": WEIGHTS}, token="good", is_gated=True)
    remote, = listed(server, tmp_path, HF_TOKEN="other").files
    with pytest.raises(AccessDenied, match="gated") as caught:
        fetch(remote, tmp_path / "x", config=config_for(server, tmp_path))
    assert "HF_TOKEN" in caught.value.hint
    remote, = listed(server, tmp_path, HF_TOKEN="good").files
    assert fetch(remote, tmp_path / "x", config=config_for(server, tmp_path)) == remote.sha256


def test_a_hub_that_lies_about_a_hash_is_found_out(server, tmp_path):
    from openhearth.errors import HashMismatch

    server.add_repo("o/n", {"model.safetensors": WEIGHTS})
    server.lying_sha256["model.safetensors"] = "0" * 64
    remote, = listed(server, tmp_path).files
    with pytest.raises(HashMismatch):
        fetch(remote, tmp_path / "x", config=config_for(server, tmp_path))
    server.lying_sha256["model.safetensors"] = "../../x"
    with pytest.raises(BadFile, match="malformed sha256"):
        listed(server, tmp_path)


@pytest.mark.parametrize("path", ["../up.safetensors", "/abs.safetensors", "a\\b.safetensors",
                                  "a\nb.safetensors"])
def test_paths_that_leave_the_folder_stop_the_listing(server, tmp_path, path):
    server.add_repo("o/n", {"model.safetensors": WEIGHTS, path: WEIGHTS})
    with pytest.raises(BadFile, match="refused"):
        listed(server, tmp_path)


@pytest.mark.parametrize("name", ["", "a/b/c", "../x", "a/..", "o/n?x", "o n/x", "-o/n"])
def test_names_that_are_no_repository_are_refused_before_any_request(server, tmp_path, name):
    with pytest.raises(UsageError):
        listed(server, tmp_path, name=name)
    assert server.requests == []


def test_offline_nothing_is_asked(server, tmp_path):
    with pytest.raises(Offline, match="hub:o/n"):
        listed(server, tmp_path, HEARTH_OFFLINE="1")
    assert server.requests == []


def test_something_that_is_no_hub_is_said_so(server, tmp_path):
    server.add_file("/api/models/x", b"")
    config = config_for(server, tmp_path, HF_ENDPOINT=server.url + "/elsewhere")
    with pytest.raises(ModelNotFound):
        list_files(Ref("hub", "o/n"), config)
    server.add_file("/elsewhere/api/models/o/n/revision/main", b"<html>")
    with pytest.raises(NetworkError, match="does not answer with JSON"):
        list_files(Ref("hub", "o/n"), config)
    server.add_file("/elsewhere/api/models/o/n/revision/main", b'{"sha": "../x"}')
    with pytest.raises(NetworkError, match="does not answer like a model hub"):
        list_files(Ref("hub", "o/n"), config)


@pytest.mark.parametrize("redirect_large", [True, False])
def test_a_tree_without_hashes_is_completed_from_the_headers(server, tmp_path, redirect_large):
    commit = server.add_repo("o/n", {"model.safetensors": WEIGHTS, "config.json": b"{}"})
    server.faults.redirect_large = redirect_large
    tree = b'[{"type": "file", "path": "model.safetensors"}, {"type": "file", "path": "config.json"}]'
    server.add_file(f"/api/models/o/n/tree/{commit}", tree)
    config, weights = listed(server, tmp_path).files
    assert (config.size, config.git_sha1) == (2, git_blob_id(b"{}"))
    assert (weights.size, weights.sha256) == (1000, hashlib.sha256(WEIGHTS).hexdigest())
