"""Keys with limits on a server that runs: what is refused, what is counted, who may see it."""

import asyncio
import csv
import io
import json
import signal
import threading
import time

import anthropic
import httpx
import openai
import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families
from support.command import hearth
from support.serve_process import Process
from support.serving import serving
from support.tiny import build_llama

from openhearth.accounts import KeyLimits, KeyStore, UsageStore
from openhearth.models.adapter_files import write_adapter
from openhearth.models.lora import AdapterWeights
from openhearth.server.accounting import BEAT_S

CHAT = "/v1/chat/completions"


def body(**settings):
    return {"model": "tiny", "messages": [{"role": "user", "content": "some words"}], "seed": 1,
            "max_tokens": 5, "logit_bias": {"2": -100}, **settings}


class Keyed:
    """A server with a key store; asks with the keys that it makes."""

    def __init__(self, server, home):
        self.server, self.store, self.usage = server, KeyStore(home), UsageStore(home)

    def create(self, name, **settings):
        limits = KeyLimits(**{one: settings.pop(one) for one in list(settings) if "_" in one})
        return self.store.create(name, limits=limits, **settings)

    def post(self, secret, path=CHAT, **settings):
        return httpx.post(self.server.url + path, json=body(**settings), timeout=60,
                          headers={"Authorization": f"Bearer {secret}"})

    def get(self, secret, path):
        return httpx.get(self.server.url + path, headers={"x-api-key": secret})

    def used(self, name, num_requests):
        """Return what is written of a key by model, once that many requests of it have ended."""
        wait_for(lambda: sum(used.requests for _, used in self.usage.read(key=name)) == num_requests)
        self.server.wait_idle()
        time.sleep(2 * BEAT_S)
        return {place.model: used for place, used in self.usage.read(key=name)}


def wait_for(is_done):
    deadline = time.monotonic() + 120
    while not is_done():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture(scope="module")
def keyed(tmp_path_factory):
    """A server whose answers take seconds if asked to: eight thousand tokens fit."""
    folder = tmp_path_factory.mktemp("keyed")
    build_llama(folder / "tiny", max_position_embeddings=8192)
    keys, usage = KeyStore(folder / "home").keys(), UsageStore(folder / "home")
    with serving(folder / "tiny", folder / "home", keys=keys, usage=usage) as server:
        yield Keyed(server, folder / "home")


def test_a_rate_is_held_in_the_form_of_each_dialect(keyed):
    secret = keyed.create("rated", requests_per_minute=2)
    assert [keyed.post(secret).status_code for _ in range(3)] == [200, 200, 429]
    reply = keyed.post(secret)
    assert 50 < int(reply.headers["retry-after"]) <= 61
    error = reply.json()["error"]
    assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
    assert "2 requests came with the key `rated`" in error["message"] and "limit is 2" in error["message"]
    client = anthropic.Anthropic(base_url=keyed.server.url, api_key=secret, max_retries=0)
    with pytest.raises(anthropic.RateLimitError, match="limit is 2"):
        client.messages.create(model="tiny", max_tokens=5, messages=[{"role": "user", "content": "a"}])
    assert "limit is 2" in keyed.post(secret, "/api/chat").json()["error"]
    assert keyed.get(secret, "/v1/models").status_code == 200, "what costs nothing is not limited"


def test_a_quota_ends_what_follows_and_clients_do_not_try_again(keyed):
    secret = keyed.create("quota", tokens_total=100)
    client = openai.OpenAI(base_url=f"{keyed.server.url}/v1", api_key=secret, max_retries=5)
    used = client.chat.completions.create(**body(max_tokens=95)).usage.total_tokens
    started = time.monotonic()
    with pytest.raises(openai.RateLimitError, match=f"{used} tokens were used") as caught:
        client.chat.completions.create(**body())
    assert time.monotonic() - started < 12 and caught.value.code == "insufficient_quota"
    assert "quota is 100" in str(caught.value)


def test_a_prompt_that_goes_over_is_refused_before_it_is_read(keyed):
    secret = keyed.create("short", tokens_per_minute=60)
    before = keyed.server.engine.stats()
    reply = keyed.post(secret, messages=[{"role": "user", "content": "word " * 200}])
    assert reply.status_code == 429 and "the prompt has" in reply.json()["error"]["message"]
    assert reply.headers["x-should-retry"] == "false"
    with httpx.Client(base_url=keyed.server.url, headers={"x-api-key": secret}) as client:
        request = {"model": "tiny", "prompt": [5] * 61, "max_tokens": 0, "echo": True, "logprobs": 1}
        assert client.post("/v1/completions", json=request).status_code == 429
        assert client.post("/v1/completions", json={**request, "prompt": [5] * 60}).status_code == 200
        assert client.post("/v1/completions", json={**request, "prompt": [5]}).status_code == 429
    assert keyed.server.engine.stats().num_drawn_tokens == before.num_drawn_tokens


def test_tokens_of_a_stream_count_while_it_runs(keyed):
    secret = keyed.create("streams", tokens_per_day=300)
    with httpx.stream("POST", keyed.server.url + CHAT, json=body(max_tokens=8000, stream=True),
                      headers={"x-api-key": secret}) as reply:
        lines = (line for line in reply.iter_lines() if line)
        for _ in range(320):
            next(lines)
        refused = keyed.post(secret)
        assert refused.status_code == 429 and "today" in refused.json()["error"]["message"]
        assert next(lines).startswith("data: "), "what was admitted goes on"
    keyed.server.wait_idle()


def test_a_revoked_key_stops_within_a_second_and_so_does_its_stream(keyed):
    secret = keyed.create("leaver")
    with httpx.stream("POST", keyed.server.url + CHAT, json=body(max_tokens=8000, stream=True),
                      headers={"x-api-key": secret}) as reply:
        lines = (line for line in reply.iter_lines() if line)
        next(lines)
        keyed.store.revoke("leaver")
        revoked = time.monotonic()
        assert keyed.post(secret).status_code == 401
        last = list(lines)[-1]
    assert BEAT_S < 0.5 and time.monotonic() - revoked < 60, "a busy machine may take longer"
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "invalid_api_key"
    keyed.server.wait_idle()


def test_what_is_written_is_what_answers_say(keyed):
    secret = keyed.create("counted")
    client = openai.OpenAI(base_url=f"{keyed.server.url}/v1", api_key=secret, max_retries=0)
    words = [{"role": "user", "content": "word " * 40}]
    usages = [client.chat.completions.create(**body(messages=words, n=n)).usage for n in (1, 3)]
    stream = client.chat.completions.create(**body(messages=words), stream=True,
                                            stream_options={"include_usage": True})
    usages.append(list(stream)[-1].usage)
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(**body(temperature=99))
    found = keyed.used("counted", 4)
    assert found["tiny"].requests == 3 and found["tiny"].errors == 0
    assert found["tiny"].prompt_tokens == sum(one.prompt_tokens for one in usages)
    assert found["tiny"].completion_tokens == sum(one.completion_tokens for one in usages) == 25
    cached = sum(one.prompt_tokens_details.cached_tokens for one in usages)
    assert found["tiny"].cached_tokens == cached > 0
    assert (found[""].requests, found[""].errors) == (1, 1)


def test_use_of_an_adapter_is_under_its_name_whatever_was_asked(tmp_path):
    build_llama(tmp_path / "tiny")
    (tmp_path / "polite").mkdir()
    pair = AdapterWeights({"model.layers.0.self_attn.q_proj": (torch.ones(4, 64), torch.ones(64, 4))}, 1.0)
    write_adapter(tmp_path / "polite", pair, rank=4, alpha=4, is_rank_stabilised=False, base_model="tiny",
                  base_weights_sha256="")
    keys, usage = KeyStore(tmp_path / "home").keys(), UsageStore(tmp_path / "home")
    with serving(tmp_path / "tiny", tmp_path / "home", keys=keys, usage=usage,
                 adapters={"polite": tmp_path / "polite"}) as server:
        asks = Keyed(server, tmp_path / "home")
        secret = asks.create("alice")
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key=secret, max_retries=0) as client:
            spent = [client.embeddings.create(model="polite", input="some words").usage,
                     client.completions.create(model="polite", prompt="some words", max_tokens=0, echo=True,
                                               logprobs=1).usage,
                     client.chat.completions.create(**body(model="polite")).usage]
        found = asks.used("alice", 3)
    assert found.keys() == {"polite"}
    assert found["polite"].prompt_tokens == sum(one.prompt_tokens for one in spent)


def test_metrics_and_the_use_of_others_are_for_admins(keyed):
    user, admin = keyed.create("someone", tokens_per_day=1000), keyed.create("boss", role="admin")
    total = keyed.post(user).json()["usage"]["total_tokens"]
    refused = keyed.get(user, "/metrics")
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "admin_only")
    assert httpx.get(keyed.server.url + "/metrics").status_code == 401
    own = keyed.get(user, "/v1/server/state").json()
    assert own["key"]["used"]["tokens_per_day"] == total and own["key"]["limits"]["tokens_per_day"] == 1000
    assert "keys" not in own and "memory" not in own and own["models"][0]["name"] == "tiny"
    keyed.used("someone", 1)
    state = keyed.get(admin, "/v1/server/state").json()
    keys = {key["name"]: key for key in state["keys"]}
    assert keys["someone"]["used"]["tokens_total"] == total and keys["boss"]["role"] == "admin"
    assert keys["someone"]["used"]["requests_per_minute"] == 1 and state["memory"]["process_bytes"] > 10**7
    assert "sha256" not in json.dumps(state)


def test_metrics_say_what_the_engine_did(keyed):
    admin = keyed.create("meter", role="admin")

    def read():
        text = keyed.get(admin, "/metrics").text
        return {(sample.name, *sorted(sample.labels.items())): sample.value
                for family in text_string_to_metric_families(text) for sample in family.samples}

    before = read()
    keyed.server.wait_idle()
    for _ in range(2):
        keyed.post(admin, messages=[{"role": "user", "content": "term " * 40}], max_tokens=7)
    httpx.get(keyed.server.url + "/../secret%0a{}", headers={"x-api-key": admin})
    after = read()

    def change(name, **labels):
        key = (name, *sorted(labels.items()))
        return after[key] - before.get(key, 0)

    assert change("hearth_drawn_tokens_total", model="tiny") == 14
    assert change("hearth_first_token_seconds_count", model="tiny") == 2
    assert change("hearth_next_token_seconds_count", model="tiny") == 12
    assert change("hearth_requests_total", method="POST", route=CHAT, status="200") == 2
    assert change("hearth_requests_total", method="", route="other", status="404") == 1
    assert change("hearth_cached_prompt_tokens_total", model="tiny") > 0
    assert after["hearth_running_completions", ("model", "tiny")] == 0
    assert after["hearth_process_open_fds",] > 0
    assert not any("secret" in str(key) for key in after)


def test_keys_may_share_cached_prompts_where_that_is_said(tiny_folder, tmp_path):
    store = KeyStore(tmp_path)
    secrets = [store.create(name) for name in ("alice", "bob")]
    with serving(tiny_folder, tmp_path, keys=KeyStore(tmp_path).keys(), shares_cache=True) as server:
        cached = [httpx.post(server.url + CHAT, json=body(messages=[{"role": "user", "content": "w " * 60}]),
                             headers={"x-api-key": secret}).json()["usage"]["prompt_tokens_details"]
                  for secret in secrets]
    assert cached[0]["cached_tokens"] == 0 and cached[1]["cached_tokens"] > 0


def test_without_keys_everyone_on_this_machine_sees_metrics_and_nothing_is_written(tiny_folder, tmp_path):
    with serving(tiny_folder, tmp_path) as server:
        httpx.post(server.url + CHAT, json=body())
        assert "hearth_drawn_tokens_total" in httpx.get(server.url + "/metrics").text
        state = httpx.get(server.url + "/v1/server/state").json()
        assert state["tokens_per_second"] > 0 and "memory" in state and "key" not in state
    assert not list(tmp_path.glob("accounts*"))


def test_sigkill_loses_no_usage_older_than_a_second(tmp_path):
    home = tmp_path / "home"
    build_llama(tmp_path / "tiny", max_position_embeddings=8192)
    secret = hearth("keys", "create", "alice", home=home).stdout.strip()
    server = Process(home, tmp_path / "tiny", "--name", "tiny", "--keys", "--quiet")
    arrived, killed = [], threading.Event()

    async def read(client, seed):
        request = body(max_tokens=8000, stream=True, seed=seed)
        async with client.stream("POST", server.url + CHAT, json=request) as reply:
            async for line in reply.aiter_lines():
                if line.startswith("data: ") and json.loads(line[6:])["choices"][0]["delta"].get("content"):
                    arrived.append(time.monotonic())

    async def read_all():
        headers = {"Authorization": f"Bearer {secret}"}
        async with httpx.AsyncClient(headers=headers, timeout=60) as client:
            await asyncio.gather(*(read(client, seed) for seed in range(3)), return_exceptions=True)
        killed.set()

    threading.Thread(target=lambda: asyncio.run(read_all()), daemon=True).start()
    deadline = time.monotonic() + 60
    while not arrived or arrived[-1] - arrived[0] < 2.3:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    moment = time.monotonic()
    server.end(signal.SIGKILL)
    assert killed.wait(120)
    old = sum(when < moment - 1 for when in arrived)
    table = hearth("usage", "--csv", "--key", "alice", "--since", "1d", home=home).stdout
    rows = list(csv.DictReader(io.StringIO(table)))
    written = sum(int(row["completion_tokens"]) for row in rows)
    assert [row["model"] for row in rows] == ["tiny"] and rows[0]["requests"] == "3"
    assert old <= written and old > 10, (old, written, len(arrived))
    as_json = json.loads(hearth("usage", "--json", "--by", "hour", home=home).stdout)
    assert sum(row["completion_tokens"] for row in as_json) == written
