"""`/api/pull` by Ollama's client, against a real local hub."""

import hashlib

import httpx
import ollama
import pytest
from support.hub_server import HubServer
from support.serving import config_of, serving
from support.tiny import build_gguf

from openhearth import hub
from openhearth.accounts import Key, Keys, hash_secret


@pytest.fixture(scope="module")
def weights(tiny_folder, tmp_path_factory):
    return build_gguf(tiny_folder, tmp_path_factory.mktemp("gguf") / "tiny.gguf", "F32").read_bytes()


@pytest.fixture(scope="module")
def source():
    with HubServer() as server:
        yield server


@pytest.fixture(scope="module")
def config(source, tmp_path_factory):
    return config_of(tmp_path_factory.mktemp("home"), HEARTH_OFFLINE="0", HF_ENDPOINT=source.url)


@pytest.fixture(scope="module")
def running(tiny_folder, config):
    with serving(tiny_folder, config.home, config=config) as server:
        yield server


@pytest.fixture
def client(running):
    return ollama.Client(running.url)


def test_a_model_arrives_with_its_progress_and_is_whole(client, source, config, weights):
    source.add_repo("owner/tiny", {"tiny.gguf": weights})
    lines = list(client.pull("hf.co/owner/tiny:latest", stream=True))
    assert (lines[0].status, lines[-1].status) == ("pulling manifest", "success")
    last = [line for line in lines if line.status == "pulling tiny.gguf"][-1]
    assert (last.completed, last.total, last.digest) == (len(weights), len(weights), "tiny.gguf")
    stored = hub.find("hub:owner/tiny", config)
    assert stored.weights_sha256 == hashlib.sha256(weights).hexdigest()
    assert client.pull("owner/tiny").status == "success", "again, without a stream"


def test_what_was_pulled_is_served_at_once(client, running, source, weights):
    source.add_repo("owner/fresh", {"fresh.gguf": weights})
    with pytest.raises(ollama.ResponseError, match="owner/fresh"):
        client.show("hf.co/owner/fresh")
    client.pull("hf.co/owner/fresh:latest")
    assert [one.model for one in client.list().models].count("owner/fresh") == 1
    for name in ("owner/fresh", "hf.co/owner/fresh:latest"):
        reply = client.chat(name, [{"role": "user", "content": "a"}], options={"num_predict": 3})
        assert reply.eval_count == 3
        assert client.show(name).modelinfo["general.architecture"] == "llama"
    assert client.chat("tiny", [{"role": "user", "content": "a"}], options={"num_predict": 3}).eval_count == 3
    client.pull("owner/fresh")
    assert [one.model for one in client.list().models].count("owner/fresh") == 1


def test_another_version_of_a_served_model_waits_for_the_next_start(client, source, weights):
    source.add_repo("owner/moves", {"moves.gguf": weights})
    client.pull("owner/moves")
    source.add_repo("owner/moves", {"moves.gguf": weights[:-4] + bytes(4)})
    with pytest.raises(ollama.ResponseError, match="started again"):
        client.pull("owner/moves")
    assert client.chat("owner/moves", [{"role": "user", "content": "a"}]).done


def test_a_pulled_file_that_is_no_model_is_not_offered(client, source):
    source.add_repo("owner/broken", {"broken.gguf": b"GGUF" + bytes(200)})
    with pytest.raises(ollama.ResponseError):
        client.pull("owner/broken")
    assert "owner/broken" not in [one.model for one in client.list().models]


def test_what_cannot_be_had_is_said(client, source, running):
    with pytest.raises(ollama.ResponseError) as caught:
        client.pull("owner/none")
    assert caught.value.status_code == 404
    with pytest.raises(ollama.ResponseError, match="owner/none"):
        list(client.pull("owner/none", stream=True))
    for name in ("/etc/passwd", "./x", "~/x", "", " a", "a b"):
        reply = httpx.post(running.url + "/api/pull", json={"model": name})
        assert reply.status_code == 400, reply.text
    assert httpx.post(running.url + "/api/pull", json={}).status_code == 400
    assert httpx.post(running.url + "/api/pull", json={"model": "a/b", "insecure": True}).status_code == 400


def test_a_client_that_leaves_ends_the_transfer_and_the_next_one_goes_on(client, source, config, weights):
    big = weights + bytes(24 << 20)
    source.add_repo("owner/big", {"big.gguf": big})
    source.faults.delay_s, before = 0.05, source.total_served()
    stream = client.pull("owner/big", stream=True)
    for line in stream:
        if (line.completed or 0) > 4 << 20:
            break
    stream.close()
    source.settle()
    served = source.total_served() - before
    assert served < len(big) and hub.find("hub:owner/big", config) is None
    source.faults.delay_s = 0
    assert client.pull("owner/big").status == "success"
    assert source.total_served() - before - served < len(big) - (2 << 20), "what arrived is not fetched again"


def test_only_admins_pull_where_there_are_keys_and_nobody_offline(tiny_folder, tmp_path):
    keys = Keys([Key("alice", hash_secret("alice"))])
    with serving(tiny_folder, tmp_path, keys=keys) as running:
        reply = httpx.post(running.url + "/api/pull", json={"model": "a/b"}, headers={"x-api-key": "alice"})
        assert reply.status_code == 403 and "admin" in reply.json()["error"]
    with serving(tiny_folder, tmp_path) as running:
        reply = httpx.post(running.url + "/api/pull", json={"model": "a/b", "stream": False})
        assert reply.status_code == 403 and "HEARTH_OFFLINE" in reply.json()["error"]
