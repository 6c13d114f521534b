"""Several models behind one address, by the official clients; and adapters that change while it runs."""

import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import ollama
import openai
import pytest
import torch
from support.command import environment
from support.serving import offer_tiny, serving_models
from support.tiny import build_llama

from openhearth.models.adapter_files import write_adapter
from openhearth.models.lora import AdapterWeights
from openhearth.server import Models

USER = [{"role": "user", "content": "the quick brown fox"}]


def make_adapter(folder, seed):
    folder.mkdir(parents=True)
    torch.manual_seed(seed)
    pair = torch.randn(4, 64), torch.randn(64, 4)
    write_adapter(folder, AdapterWeights({"model.layers.0.self_attn.q_proj": pair}, 2.0), rank=4, alpha=8,
                  is_rank_stabilised=False, base_model="tiny", base_weights_sha256="")
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("several")
    for seed, name in enumerate(("a", "b", "c")):
        build_llama(folder / name, seed=seed)
    return {name: folder / name for name in ("a", "b", "c")}


@pytest.fixture
def running(folders, tmp_path):
    """Three models of which two fit; `polite` is an adapter of the second."""
    adapters = {"b": {"polite": make_adapter(tmp_path / "polite", 0)}}
    offers = offer_tiny(folders, tmp_path / "home", adapters=adapters)
    with serving_models(Models(offers, memory_bytes=2 * offers[0].plan.num_bytes)) as server:
        yield server


def states(url):
    return {model["id"]: model["state"] for model in httpx.get(url + "/v1/models").json()["data"]}


def until(condition):
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_lists_say_what_is_loaded_and_showing_loads_nothing(running):
    client = ollama.Client(running.url)
    assert states(running.url) == {"a": "loaded", "b": "stored", "polite": "stored", "c": "stored"}
    assert [model.model for model in client.list().models] == ["a", "b", "polite", "c"]
    assert len({model.digest for model in client.list().models}) == 4
    shown = client.show("b")
    assert "im_start" in shown.template and shown.modelinfo["llama.context_length"] == 512
    parents = {model["id"]: model["parent"] for model in httpx.get(running.url + "/v1/models").json()["data"]}
    assert parents == {"a": None, "b": None, "polite": "b", "c": None}
    assert [model.name for model in client.ps().models] == ["a"]
    answer = client.chat("polite", messages=USER, options={"num_predict": 3}, keep_alive="5m")
    assert answer.load_duration > 0 and answer.total_duration > answer.load_duration
    again = client.chat("b", messages=USER, options={"num_predict": 3}, keep_alive="5m")
    assert again.load_duration < answer.load_duration
    first, second, polite = client.ps().models
    assert (second.name, polite.name, second.size) == ("b", "polite", running.models.offers[1].plan.num_bytes)
    assert first.expires_at.year == 9999
    assert 0 < second.expires_at.timestamp() - time.time() <= 301
    assert httpx.get(running.url + "/ready").json() == {"status": "ready"}


def test_a_client_unloads_a_model_and_the_next_request_loads_it(running):
    client = ollama.Client(running.url)
    before = client.chat("a", messages=USER, options={"seed": 1, "num_predict": 20}).message.content
    assert client.generate("a", keep_alive=0).done_reason == "unload"
    until(lambda: states(running.url)["a"] == "stored")
    assert client.ps().models == []
    assert httpx.get(running.url + "/health").status_code == 200
    assert client.chat("a", messages=USER, options={"seed": 1, "num_predict": 20}).message.content == before


def test_models_take_turns_under_load_and_every_answer_is_that_of_its_model_alone(running):
    client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=5)

    def ask(name):
        [choice] = client.chat.completions.create(model=name, messages=USER, seed=3, max_tokens=30,
                                                  logprobs=True).choices
        return choice.message.content, [one.logprob for one in choice.logprobs.content]

    alone = {name: ask(name) for name in ("a", "b", "polite", "c")}
    assert len({text for text, _ in alone.values()}) == 4
    names = ["a", "b", "c", "polite", "a", "c", "b", "a", "c", "polite", "b", "a"]
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(ask, names)) == [alone[name] for name in names]
    until(lambda: all(offer.num_leases == 0 for offer in running.models.offers))
    assert running.models.held_bytes <= running.models.memory_bytes


def test_a_model_that_is_not_there_and_one_that_is_not_named(running):
    reply = httpx.post(running.url + "/v1/chat/completions", json={"model": "d", "messages": USER})
    assert (reply.status_code, reply.json()["error"]["code"]) == (404, "model_not_found")
    assert "served: a, b, polite, c" in reply.json()["error"]["message"]
    assert httpx.get(running.url + "/v1/models/d").status_code == 404
    reply = httpx.post(running.url + "/v1/chat/completions", json={"messages": USER})
    assert reply.json()["error"]["param"] == "model"
    assert httpx.post(running.url + "/tokenize", json={"prompt": "x"}).json()["count"] == 1
    assert states(running.url)["b"] == "stored"


def test_an_adapter_that_fits_several_models_wants_to_know_which(folders, tmp_path):
    shelf = tmp_path / "shelf"
    make_adapter(shelf / "polite", 0)
    server = subprocess.Popen(
        [sys.executable, "-m", "openhearth", "serve", folders["a"], folders["b"], "--port", "0", "--quiet",
         "--adapter", f"mine@b={shelf / 'polite'}", "--adapter-dir", shelf, "--memory", "1"],
        env=environment(tmp_path / "home", HEARTH_OFFLINE="1"), text=True, stderr=subprocess.PIPE)
    try:
        first = server.stderr.readline()
        assert first.startswith("error: adapter `polite` fits a and b"), first
        assert server.wait(120) == 2
    finally:
        server.kill()


def test_a_hangup_reads_adapters_again_while_it_serves(folders, tmp_path):
    shelf = tmp_path / "shelf"
    make_adapter(shelf / "polite", 0)
    (shelf / "notes").mkdir()
    server = subprocess.Popen(
        [sys.executable, "-m", "openhearth", "serve", folders["a"], "--port", "0", "--quiet",
         "--adapter-dir", shelf], env=environment(tmp_path / "home", HEARTH_OFFLINE="1"), text=True,
        stderr=subprocess.PIPE)
    try:
        line = server.stderr.readline()
        assert line.startswith("serving a, polite at http://"), line
        url = line.split()[4]

        def ask(name):
            body = {"model": name, "messages": USER, "seed": 1, "max_tokens": 20}
            answer = httpx.post(url + "/v1/chat/completions", json=body).json()
            return answer["choices"][0]["message"]["content"]

        plain, polite = ask("a"), ask("polite")
        shutil.rmtree(shelf / "polite")
        make_adapter(shelf / "polite", 1)
        make_adapter(shelf / "new", 0)
        server.send_signal(signal.SIGHUP)
        assert server.stderr.readline() == "serving a, new, polite\n"
        assert ask("a") == plain and ask("new") == polite and ask("polite") not in (plain, polite)
        os.truncate(shelf / "new" / "adapter_model.safetensors", 20)
        server.send_signal(signal.SIGHUP)
        assert server.stderr.readline().startswith("nothing was changed: ")
        assert ask("new") == polite
    finally:
        server.terminate()
        assert server.wait(120) == 0
