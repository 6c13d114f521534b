"""Ollama's dialect: chat, generate, their lines, what clients ask about models, errors.

What is checked: `ollama` 0.6.3 and the API's documentation in ollama/ollama, docs/api.md.

Does not: pull or change models.
"""

from __future__ import annotations

import json
from typing import Any

from openhearth.conform.openai import USER, middle_of
from openhearth.conform.records import expect, has, one_of, shown
from openhearth.conform.wire import Peer, Reply

CHAT, GENERATE = "/api/chat", "/api/generate"
GREEDY = {"temperature": 0, "num_predict": 24}
_LAST = {"total_duration": int, "eval_count": int, "eval_duration": int, "prompt_eval_duration": int}


def chat(peer: Peer, **fields: Any) -> Reply:
    """Ask for a chat."""
    return peer.served(peer.post(CHAT, **{"messages": USER, "options": GREEDY, **fields}))


def read_chat(value: dict[str, Any], *, is_last: bool) -> str:
    """Return the text of a record of a chat whose shape is right. Raises: Broken."""
    has(value, "a record", model=str, created_at=str, message=dict, done=bool)
    expect(value["done"] == is_last, f"`done` is {value['done']}")
    if is_last:
        has(value, "the last record", done_reason=str, **_LAST)
    one_of(has(value["message"], "the message", role=str, content=str)["role"], "`role`", "assistant")
    return value["message"]["content"]


def read_lines(reply: Reply) -> tuple[str, dict[str, Any]]:
    """Return the text of a streamed chat, and its last record. Raises: Broken."""
    *rest, last = reply.lines()
    text = "".join(read_chat(value, is_last=False) for value in rest)
    return text + read_chat(last, is_last=True), last


def the_version_is_told(peer: Peer) -> None:
    """`GET /api/version` has a version."""
    has(peer.served(peer.get("/api/version")).ok(), "the answer", version=str)


def models_are_listed(peer: Peer) -> None:
    """`GET /api/tags` lists models with digest, size and details."""
    listed = has(peer.served(peer.get("/api/tags")).ok(), "the answer", models=list)["models"]
    for model in listed:
        has(model, "a model", name=str, model=str, modified_at=str, size=int, digest=str, details=dict)
        has(model["details"], "`details`", format=str, family=str, parameter_size=str, quantization_level=str)
    names = [model["name"].removesuffix(":latest") for model in listed]
    expect(peer.model.removesuffix(":latest") in names, f"`{peer.model}` is not in the list")


def a_model_is_shown(peer: Peer) -> None:
    """`POST /api/show` has details, what the model can do and its facts; 404 for one that is not there."""
    found = has(peer.served(peer.post("/api/show")).ok(), "the answer", details=dict, model_info=dict,
                capabilities=list)
    expect("completion" in found["capabilities"], f"`capabilities` are {shown(found['capabilities'])}")
    read_error(peer.post("/api/show", {"model": "no-such-model"}), 404)


def running_models_are_listed(peer: Peer) -> None:
    """`GET /api/ps` lists the model that has just answered."""
    read_chat(chat(peer, stream=False).ok(), is_last=True)
    running = has(peer.served(peer.get("/api/ps")).ok(), "the answer", models=list)["models"]
    for model in running:
        has(model, "a model", name=str, model=str, size=int, digest=str, expires_at=str, size_vram=int)
    expect(peer.model.removesuffix(":latest") in [model["name"].removesuffix(":latest") for model in running],
           f"`{peer.model}` is not in the list")


def chat_streams_by_default(peer: Peer) -> None:
    """`/api/chat` streams lines unless told not to; they are the greedy answer in pieces."""
    whole = chat(peer, stream=False).ok()
    expected = read_chat(whole, is_last=True)
    text, last = read_lines(chat(peer))
    expect(text == expected, f"the stream says {shown(text)}, the answer {shown(expected)}")
    expect(last["eval_count"] == whole["eval_count"], "`eval_count` differs between stream and answer")
    one_of(last["done_reason"], "`done_reason`", "stop", "length")


def generate_answers(peer: Peer) -> None:
    """`/api/generate` has its shape, streamed and not."""
    body = {"prompt": USER[0]["content"], "options": GREEDY}
    whole = has(peer.served(peer.post(GENERATE, **body, stream=False)).ok(), "the answer", model=str,
                created_at=str, response=str, done=bool, done_reason=str, **_LAST)
    *rest, last = peer.post(GENERATE, **body).lines()
    text = "".join(has(value, "a line", response=str, done=bool)["response"] for value in (*rest, last))
    expect(text == whole["response"], f"the stream says {shown(text)}, the answer {shown(whole['response'])}")
    expect(last["done"] and not any(value["done"] for value in rest), "`done` is not in the last line alone")


def options_are_followed(peer: Peer) -> None:
    """`num_predict`, `stop` and `seed` do what they say."""
    whole = read_chat(chat(peer, stream=False).ok(), is_last=True)
    short = chat(peer, stream=False, options={**GREEDY, "num_predict": 2}).ok()
    expect(short["eval_count"] <= 2, f"`num_predict: 2` gives {short['eval_count']} tokens")
    stop = middle_of(whole)
    cut = chat(peer, stream=False, options={**GREEDY, "stop": [stop]}).ok()
    expect(cut["message"]["content"].rstrip() == whole[:whole.index(stop)].rstrip(),
           f"with stop {shown(stop)} the answer {shown(whole)} becomes {shown(cut['message']['content'])}")
    seeded = [chat(peer, stream=False, options={"temperature": 1, "seed": 7, "num_predict": 16}).ok()
              for _ in range(2)]
    expect(seeded[0]["message"]["content"] == seeded[1]["message"]["content"], "a seed does not repeat")


def nothing_to_say_loads(peer: Peer) -> None:
    """No messages, or no prompt, load the model and say so."""
    for reply in (chat(peer, messages=[], stream=False), peer.served(peer.post(GENERATE, stream=False))):
        answer = has(reply.ok(), "the answer", done=bool, done_reason=str)
        one_of(answer["done_reason"], "`done_reason`", "load")


def a_format_is_followed(peer: Peer) -> None:
    """`format` of a JSON schema gives JSON that fits."""
    schema = {"type": "object", "properties": {"is_big": {"type": "boolean"}}, "required": ["is_big"],
              "additionalProperties": False}
    reply = peer.done(chat(peer, format=schema, stream=False, options={"temperature": 0, "num_predict": 100}))
    text = read_chat(reply.ok(), is_last=True)
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    expect(isinstance(value, dict) and isinstance(value.get("is_big"), bool),
           f"the answer {shown(text)} does not fit the schema")


def embeddings_come(peer: Peer) -> None:
    """`/api/embed` has one vector for each input."""
    reply = peer.served(peer.done(peer.post("/api/embed", input=["A cat.", "A dog."])))
    found = has(reply.ok(), "the answer", model=str, embeddings=list)["embeddings"]
    expect(len(found) == 2 and len(found[0]) == len(found[1]) > 1, "expected two vectors of one length")


def what_is_wrong_is_refused(peer: Peer) -> None:
    """Malformed JSON and wrong fields are 400 with `error`; an unknown model is 404."""
    chat(peer, stream=False)
    read_error(peer.post(CHAT, b'{"model": '), 400)
    for wrong in ({"messages": "hello"}, {"messages": USER, "options": {"temperature": "hot"}}):
        reply = peer.post(CHAT, **wrong)
        expect(reply.status == 400, f"{shown(json.dumps(wrong))} has status {reply.status}")
        read_error(reply, 400)
    read_error(peer.post(CHAT, {"model": "no-such-model", "messages": USER}), 404)


def read_error(reply: Reply, status: int) -> None:
    """Check an error in Ollama's shape. Raises: Broken."""
    expect(reply.status == status, f"status {reply.status}, expected {status}")
    has(reply.json(), "the body", error=str)


CHECKS = (the_version_is_told, models_are_listed, a_model_is_shown, running_models_are_listed,
          chat_streams_by_default, generate_answers, options_are_followed, nothing_to_say_loads,
          a_format_is_followed, embeddings_come, what_is_wrong_is_refused)
