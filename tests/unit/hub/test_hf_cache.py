"""The Hugging Face cache as stock `huggingface_hub` writes it, read in place with no socket."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from support.hub_server import HubServer

from openhearth.hub import find
from openhearth.hub.hf_cache import find_snapshot, is_complete
from openhearth.hub.refs import parse_ref

SNAPSHOT = "import sys; from huggingface_hub import snapshot_download; print(snapshot_download({arguments}))"
ROOT = Path(__file__).parents[3]


def download(server, cache, arguments):
    """Let stock huggingface_hub fill the cache from the local server."""
    env = {
        **os.environ,
        "HF_ENDPOINT": server.url,
        "HF_HUB_CACHE": str(cache),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HOME": str(cache.parent),
    }
    done = subprocess.run(
        [sys.executable, "-c", SNAPSHOT.format(arguments=arguments)],
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip().splitlines()[-1])


@pytest.fixture
def safetensors_files(tiny_folder):
    return {path.name: path.read_bytes() for path in tiny_folder.iterdir()}


@pytest.fixture
def server():
    with HubServer() as server:
        yield server


def test_a_snapshot_is_found_with_all_sockets_forbidden(server, config, safetensors_files, tmp_path):
    commit = server.add_repo("owner/tiny", safetensors_files)
    folder = download(server, config.hf_cache, "'owner/tiny'")
    log = tmp_path / "sockets.log"
    code = (
        "import sys, json; from openhearth.config import Config; from openhearth import hub\n"
        "found = hub.find('owner/tiny', Config.from_env())\n"
        "print(json.dumps([str(found.path), found.revision, found.source, found.is_in_place, found.name]))"
    )
    env = {
        "PYTHONPATH": f"{ROOT / 'src'}:{ROOT / 'tests' / 'support' / 'socket_guard'}",
        "SOCKET_LOG": str(log),
        "HF_HUB_CACHE": str(config.hf_cache),
        "HEARTH_HOME": str(config.home),
        "PATH": "",
    }
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [
        str(folder),
        commit,
        f"hub:owner/tiny@{commit}",
        True,
        "hub:owner/tiny",
    ]
    assert not log.exists() or log.read_text() == ""


def test_branches_tags_and_commits_are_resolved(server, config, safetensors_files):
    first = server.add_repo("owner/tiny", safetensors_files)
    second = server.add_repo("owner/tiny", {**safetensors_files, "README.md": b"new"}, revision="v2/beta")
    download(server, config.hf_cache, "'owner/tiny'")
    download(server, config.hf_cache, "'owner/tiny', revision='v2/beta'")
    for revision, commit in (("", first), ("@main", first), ("@v2/beta", second), (f"@{second}", second)):
        assert find_snapshot(parse_ref(f"hub:owner/tiny{revision}"), config.hf_cache).commit == commit
    assert find_snapshot(parse_ref("hub:owner/tiny@v3"), config.hf_cache) is None
    assert find_snapshot(parse_ref("hub:owner/other"), config.hf_cache) is None


def test_an_incomplete_snapshot_is_not_used(server, config, safetensors_files):
    server.add_repo("owner/tiny", safetensors_files)
    download(server, config.hf_cache, "'owner/tiny', allow_patterns=['*.json']")
    assert find("hub:owner/tiny", config) is None
    folder = download(server, config.hf_cache, "'owner/tiny'")
    assert find("hub:owner/tiny", config).path == folder
    (folder / "model.safetensors").resolve().unlink()
    assert find("hub:owner/tiny", config) is None


def test_one_file_of_a_repository_is_found(server, config, make_gguf):
    server.add_repo("owner/quants", {"q4.gguf": make_gguf(seed=4), "sub/q8.gguf": make_gguf(seed=8)})
    download(server, config.hf_cache, "'owner/quants'")
    assert find("hub:owner/quants:q4.gguf", config).path.name == "q4.gguf"
    assert find("hub:owner/quants:*8.gguf", config).path.name == "q8.gguf"
    assert find("hub:owner/quants:q5.gguf", config) is None
    assert find_snapshot(parse_ref("hub:owner/quants:*.gguf"), config.hf_cache) is None


@pytest.mark.parametrize(
    "names,expected",
    [
        (["config.json", "model.safetensors"], True),
        (["model.safetensors"], False),
        (["config.json"], False),
        (["config.json", "model-00001-of-00002.safetensors"], False),
        (["m.gguf"], True),
        (["m-00001-of-00002.gguf"], False),
        (["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"], True),
        ([], False),
    ],
)
def test_completeness_goes_by_names(tmp_path, names, expected):
    for name in names:
        (tmp_path / name).touch()
    assert is_complete(tmp_path) is expected


@pytest.mark.parametrize(
    "index,expected",
    [
        ({"weight_map": {"a": "model-00001-of-00002.safetensors"}}, True),
        (
            {
                "weight_map": {
                    "a": "model-00001-of-00002.safetensors",
                    "b": "model-00002-of-00002.safetensors",
                }
            },
            False,
        ),
        ({"weight_map": 3}, False),
        ({}, False),
    ],
)
def test_an_index_says_which_shards_belong(tmp_path, index, expected):
    for name in ("config.json", "model-00001-of-00002.safetensors"):
        (tmp_path / name).touch()
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert is_complete(tmp_path) is expected


@pytest.mark.parametrize("revision", ["..", "../../x", "a/../../../x"])
def test_a_revision_never_leaves_the_repository(config, revision):
    outside = config.hf_cache / "x"
    outside.parent.mkdir(parents=True)
    outside.write_text("a" * 40)
    ref = replace(parse_ref("hub:owner/tiny"), revision=revision)
    assert find_snapshot(ref, config.hf_cache) is None


def test_a_pinned_name_takes_a_cached_file_only_if_the_hash_is_right(server, config, make_gguf):
    right, wrong = make_gguf(seed=1), make_gguf(seed=2)
    import hashlib

    config.home.mkdir()
    (config.home / "catalogue.toml").write_text(
        f'[mine]\nfile = "m.gguf"\nsize = {len(right)}\nsha256 = "{hashlib.sha256(right).hexdigest()}"\n'
        'sources = ["hub:owner/bad:m.gguf", "hub:owner/good:m.gguf"]\nlicence = "MIT"\n'
    )
    server.add_repo("owner/bad", {"m.gguf": wrong})
    server.add_repo("owner/good", {"m.gguf": right})
    download(server, config.hf_cache, "'owner/bad'")
    assert find("mine", config) is None
    download(server, config.hf_cache, "'owner/good'")
    found = find("mine", config)
    assert found.path.read_bytes() == right and found.is_in_place and found.licence == "MIT"
