"""How a server behaves: limits, keys, ids, its log, clients that leave, other origins."""

import contextlib
import hashlib
import json
import socket
import threading
import time

import httpx
import openai
import pytest
from support.serving import serving
from support.tiny import build_llama

from openhearth.accounts import Key, Keys
from openhearth.server import Limits

CHAT = "/v1/chat/completions"
LONG = 20_000


def body(**settings):
    return {"model": "tiny", "messages": [{"role": "user", "content": "secret words"}], "seed": 1,
            "max_tokens": 5, **settings}


ENDLESS = {"type": "array", "items": {"type": "boolean"}, "minItems": 50_000}


@pytest.fixture(scope="module")
def slow(tmp_path_factory):
    """A server whose answers take seconds: many tokens fit."""
    folder = tmp_path_factory.mktemp("slow")
    build_llama(folder / "tiny", max_position_embeddings=1 << 15)
    with serving(folder / "tiny", folder / "home",
                 limits=Limits(max_body_bytes=20_000, body_s=0.5, max_waiting=4)) as server:
        yield server


def never_ending(**settings):
    return body(max_tokens=LONG, logit_bias={"2": -100}, **settings)


def drawn(server):
    return server.engine.stats().num_drawn_tokens


@pytest.mark.parametrize("path,request_body", [
    (CHAT, never_ending(stream=True)), (CHAT, never_ending(stream=True, n=3)),
    ("/v1/completions", {"model": "tiny", "prompt": ["a", "b"], "max_tokens": LONG, "logit_bias": {"2": -100},
                         "stream": True}),
    ("/v1/messages", {"model": "tiny", "max_tokens": LONG, "stream": True, "temperature": 0,
                      "messages": [{"role": "user", "content": "a"}],
                      "output_config": {"format": {"type": "json_schema", "schema": ENDLESS}}}),
    ("/api/generate", {"model": "tiny", "prompt": "a", "options": {"temperature": 0}, "format": ENDLESS}),
])
def test_a_client_that_leaves_a_stream_frees_its_pages(slow, path, request_body):
    before = drawn(slow)
    with httpx.stream("POST", slow.url + path, json=request_body) as reply:
        assert reply.status_code == 200
        chunks = reply.iter_raw()  # to drop it is to leave
        for _ in range(6):
            next(chunks)
        assert slow.engine.stats().num_used_pages > 0
    slow.wait_idle()
    assert drawn(slow) - before < LONG


def test_a_client_that_leaves_while_it_waits_frees_its_pages(slow):
    before = drawn(slow)
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(slow.url + CHAT, json=never_ending(), timeout=httpx.Timeout(20, read=0.5))
    slow.wait_idle()
    assert drawn(slow) - before < LONG
    deadline = time.monotonic() + 120
    while not slow.log[-1].get("client_left"):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_many_that_leave_and_one_that_stays(slow):
    def leave():
        with httpx.stream("POST", slow.url + CHAT, json=never_ending(stream=True)) as reply:
            next(reply.iter_raw())

    threads = [threading.Thread(target=leave) for _ in range(4)]
    for thread in threads:
        thread.start()
    reply = httpx.post(slow.url + CHAT, json=body(max_tokens=50, logit_bias={"2": -100}))
    for thread in threads:
        thread.join()
    assert reply.json()["usage"]["completion_tokens"] == 50
    slow.wait_idle()


def test_a_full_line_says_when_to_come_back(slow):
    client = openai.OpenAI(base_url=f"{slow.url}/v1", api_key="none", max_retries=0, timeout=60)
    with contextlib.ExitStack() as open_streams:
        for _ in range(200):
            reply = open_streams.enter_context(
                httpx.stream("POST", slow.url + CHAT, json=never_ending(stream=True, n=4), timeout=60))
            if reply.status_code != 200:
                break
        reply.read()
        assert (reply.status_code, reply.headers["retry-after"]) == (429, "1")
        assert reply.json()["error"]["type"] == "rate_limit_error"
        assert "4 more do not fit" in reply.json()["error"]["message"]
        with pytest.raises(openai.RateLimitError):
            client.chat.completions.create(**body(n=4))
    slow.wait_idle()


def test_more_answers_than_the_line_ever_holds_are_a_bad_request(slow):
    reply = httpx.post(slow.url + CHAT, json=body(n=5))
    assert reply.status_code == 400 and "retry-after" not in reply.headers
    assert "at most 4 at a time" in reply.json()["error"]["message"]


def test_a_body_has_a_limit_whether_its_length_is_told_or_not(slow):
    big = json.dumps(body(messages=[{"role": "user", "content": "x" * 30_000}])).encode()
    assert httpx.post(slow.url + CHAT, content=big).status_code == 413
    in_parts = (big[i:i + 999] for i in range(0, len(big), 999))
    assert httpx.post(slow.url + CHAT, content=in_parts).status_code == 413


def test_a_body_that_does_not_come_is_not_waited_for(slow):
    host, port = slow.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
                           b"Content-Length: 50\r\n\r\n{")
        assert connection.recv(100).startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize("content", [
    b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b'{"model": NaN}', b'{"seed": Infinity}', b"[" * 19_000,
    b'{"a":' * 3_000, b'{"temperature": ' + b"9" * 19_000 + b"}",
])
def test_what_is_no_json_object_is_refused(slow, content):
    reply = httpx.post(slow.url + CHAT, content=content)
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]["code"] == "invalid_json"


@pytest.mark.parametrize("settings", [
    {"temperature": 1e999}, {"seed": -2**63}, {"model": "\ud800"}, {"stop": "\ud800"},
    {"messages": [{"role": "user", "content": "\ud800 \u0000 \U0010ffff"}]}, {"logit_bias": {"999999": 1}},
    {"chat_template_kwargs": {"x": {"y": [None, 1.5]}}}, {"model": "x" * 5000},
    {"chat_template_kwargs": {"tokenizer": 1}}, {"chat_template_kwargs": {"self": 1}},
    {"chat_template_kwargs": {"bos_token": "<|im_end|>", "": 1, "a b": 2}}, {"messages": [{"role": []}]},
    {"messages": [[]]}, {"messages": [{"role": "user", "content": [1]}]}, {"stream_options": []},
])
def test_strange_values_are_served_or_refused_and_nothing_breaks(slow, settings):
    content = json.dumps(body(**settings)).replace("Infinity", "1e999").encode()
    reply = httpx.post(slow.url + CHAT, content=content)
    assert reply.status_code in (200, 400, 404), reply.text
    assert "mistake in hearth" not in reply.text
    slow.wait_idle()


def test_paths_and_methods_that_are_not_there(slow):
    assert httpx.get(slow.url + "/nothing").json()["error"]["code"] == "unknown_path"
    reply = httpx.post(slow.url + "/v1/conversations", json={})
    assert reply.status_code == 404 and "this version does not have it" in reply.json()["error"]["message"]
    assert "hearth pull" in httpx.post(slow.url + "/api/push", json={}).json()["error"]
    assert httpx.get(slow.url + CHAT).status_code == 405
    assert httpx.get(slow.url + "/v1/messages").json()["type"] == "error"


def test_health_readiness_and_request_ids(slow):
    assert httpx.get(slow.url + "/health").json() == {"status": "ok"}
    assert httpx.get(slow.url + "/ready").json() == {"status": "ready"}
    for given, is_kept in (("mine-1", True), ("a b", False), ("x" * 200, False), ("{}", False)):
        reply = httpx.get(slow.url + "/ready", headers={"x-request-id": given})
        assert (reply.headers["x-request-id"] == given) == is_kept


def test_the_log_has_counts_and_no_words(slow):
    reply = httpx.post(slow.url + CHAT, json=body(), params={"q": "secret"})
    deadline = time.monotonic() + 120
    while not (found := [line for line in slow.log if line["request_id"] == reply.headers["x-request-id"]]):
        assert time.monotonic() < deadline
    usage = reply.json()["usage"]
    assert (found[0]["status"], found[0]["path"], found[0]["model"]) == (200, CHAT, "tiny")
    assert found[0]["prompt_tokens"] == usage["prompt_tokens"]
    assert found[0]["completion_tokens"] == usage["completion_tokens"]
    assert "secret" not in json.dumps(slow.log)


@pytest.mark.parametrize("headers", [{"Host": "evil.example"}, {"Origin": "https://evil.example"},
                                     {"Origin": "null"}, {"Host": "127.0.0.1.evil.example:80"}])
def test_without_keys_only_this_machine_is_answered(slow, headers):
    reply = httpx.post(slow.url + CHAT, json=body(), headers=headers)
    assert (reply.status_code, reply.json()["error"]["code"]) == (403, "foreign_origin")


def test_without_keys_pages_of_this_machine_are_answered(slow):
    for headers in ({"Origin": "http://localhost:3000"}, {"Host": "localhost:1"}, {"Host": "[::1]:8000"}):
        assert httpx.get(slow.url + "/v1/models", headers=headers).status_code == 200


def test_keys_by_either_header_and_their_caches_apart(tiny_folder, tmp_path):
    keys = Keys(Key(name, hashlib.sha256(name.encode()).hexdigest()) for name in ("alice", "bob"))
    with serving(tiny_folder, tmp_path, keys=keys) as running:
        def ask(key, **settings):
            client = openai.OpenAI(base_url=f"{running.url}/v1", api_key=key, max_retries=0)
            return client.chat.completions.create(**body(**settings))

        for key in ("wrong", "alic", hashlib.sha256(b"alice").hexdigest()):
            with pytest.raises(openai.AuthenticationError):
                ask(key)
        assert httpx.get(running.url + "/v1/models").status_code == 401
        anthropic_error = httpx.post(running.url + "/v1/messages", json={}).json()
        assert anthropic_error["error"]["type"] == "authentication_error"
        assert httpx.get(running.url + "/health").status_code == 200
        by_header = httpx.get(running.url + "/v1/models", headers={"x-api-key": "bob", "Host": "any.example"})
        assert by_header.status_code == 200
        cached = []
        for key in ("alice", "alice", "bob", "bob"):
            usage = ask(key, messages=[{"role": "user", "content": "word " * 40}]).usage
            cached.append(usage.prompt_tokens_details.cached_tokens)
        assert cached[0] == cached[2] == 0 and cached[1] == cached[3] > 0
        assert {line["key"] for line in running.log if line["status"] == 200} == {None, "alice", "bob"}
        running.wait_idle()
