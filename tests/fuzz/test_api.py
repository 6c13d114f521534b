"""Requests drawn from the description of the API, right and wrong ones, against a server: none breaks it.

HEARTH_FUZZ_EXAMPLES says how many requests each path gets in each mode; the default keeps the test short.
"""

import contextlib
import json
import os

import httpx
import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from support.serving import serving
from support.tiny import build_llama

schemathesis = pytest.importorskip("schemathesis")

NUM_EXAMPLES = int(os.environ.get("HEARTH_FUZZ_EXAMPLES", "3"))
SHORT = {"max_tokens": 3, "max_completion_tokens": 3, "max_output_tokens": 3, "num_predict": 3, "n": 2}


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny") / "tiny"
    build_llama(folder, max_position_embeddings=4096)
    with serving(folder, tmp_path_factory.mktemp("home")) as server:
        yield server


@pytest.fixture(scope="module")
def description(running):
    return httpx.get(f"{running.url}/openapi.json").json()


def shortened(body):
    """Ask for the model that is there, and for little: what is fuzzed is the reading of requests."""
    if not isinstance(body, dict):
        return body
    known = {"model": "tiny"} if isinstance(body.get("model"), str) else {}
    options = {"options": shortened(body["options"])} if isinstance(body.get("options"), dict) else {}
    little = {name: few for name, few in SHORT.items() if type(body.get(name)) is int}
    return {**body, **known, **options, **little}


def completed(body, properties):
    """Give a body what no request can do without."""
    least = {"model": "tiny", "prompt": "a", "input": "a", "query": "a", "documents": ["a"], "text_1": "a",
             "text_2": "a", "tokens": [1], "max_tokens": 3, "max_output_tokens": 3,
             "options": {"num_predict": 3}, "messages": [{"role": "user", "content": "a"}]}
    body = {name: value for name, value in body.items() if name not in ("previous_response_id", "texts")}
    return {**{name: least[name] for name in least if name in properties}, **body}


def test_every_path_is_described_and_every_schema_is_one(description, running):
    assert description["openapi"] == "3.1.0" and len(description["paths"]) >= 30
    chat = description["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]
    jsonschema.Draft202012Validator.check_schema(chat["schema"])
    validator = jsonschema.Draft202012Validator(chat["schema"])
    good = {"model": "tiny", "messages": [{"role": "user", "content": "a"}], "temperature": 1, "stop": ["a"],
            "tools": [], "stream_options": None}
    assert validator.is_valid(good)
    for wrong in ({"temperature": 3}, {"n": 0}, {"messages": []}, {"unheard": 1}, {"stop": [""]},
                  {"stream_options": {"unheard": 1}}, {"tools": [1]}, {"messages": [{"role": "tool"}]}):
        assert not validator.is_valid({**good, **wrong}), wrong
        reply = httpx.post(f"{running.url}/v1/chat/completions", json={**good, **wrong})
        assert reply.status_code == 400, wrong


def statuses_of(operation, mode, running):
    """Send requests to one operation and return the statuses of the answers."""
    content = operation.definition.raw.get("requestBody", {}).get("content", {})
    properties = content.get("application/json", {}).get("schema", {}).get("properties", {})
    seen = set()

    is_positive = mode == schemathesis.GenerationMode.POSITIVE

    @given(case=operation.as_strategy(generation_mode=mode),
           is_filled=st.just(True) if is_positive else st.booleans())
    @settings(max_examples=NUM_EXAMPLES, deadline=None, derandomize=True, database=None,
              suppress_health_check=list(HealthCheck))
    def ask(case, is_filled):
        if isinstance(case.body, dict):
            body = shortened(case.body)
            case.body = completed(body, properties) if is_filled else body
        reply = case.call(base_url=running.url, timeout=60)
        seen.add(reply.status_code)
        assert reply.status_code < 500 and "mistake in hearth" not in reply.text, (case.body, reply.text)

    with contextlib.suppress(Unsatisfiable):  # a path without anything to get wrong
        ask()
    return seen


@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode))
def test_no_request_that_is_drawn_from_the_description_breaks_the_server(running, description, mode):
    operations = [found.ok() for found in schemathesis.openapi.from_dict(description).get_all_operations()]
    statuses = {operation.label: statuses_of(operation, mode, running) for operation in operations}
    running.wait_idle()
    assert len(statuses) >= 30
    if mode == schemathesis.GenerationMode.POSITIVE:
        answers = [label for label in statuses if label.startswith("POST /") and "{id}" not in label]
        assert sum(200 in statuses[label] for label in answers) >= len(answers) * 2 / 3, statuses


HUGE = [-1, -2**63, 2**63, 2**64, 10**30, 1e308, -1e308, 1e-320, 0.1, True, "1", "\ud800", "\x00", [], {}]


@pytest.mark.parametrize("path", [
    "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/messages", "/api/chat",
    "/api/generate", "/api/embed", "/rerank", "/score", "/tokenize", "/detokenize", "/api/show", "/api/pull",
])
def test_strange_values_in_every_field_are_served_or_refused(running, description, path):
    content = description["paths"][path]["post"]["requestBody"]["content"]["application/json"]
    properties = content["schema"]["properties"]
    with httpx.Client(base_url=running.url, timeout=60) as client:
        for name in properties:
            for value in HUGE:
                body = json.dumps({**completed({}, properties), name: value}).encode()
                reply = client.post(path, content=body)
                assert reply.status_code < 500, (name, value, reply.text)
        for content in (b'{"model": "tiny", "seed": 1e999}', b'{"model": "\xff\xfe"}', b"[" * 100_000,
                        b'{"a":' * 50_000 + b"1" + b"}" * 50_000, b'{"n": ' + b"9" * 10_000 + b"}", b"\x00"):
            assert client.post(path, content=content).status_code == 400
    running.wait_idle()
