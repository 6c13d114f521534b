"""OpenAI's dialect beyond plain chat: text completions, tools, schemas, embeddings.

What is checked: as in `openai.py`. What a server may leave out is reported as not served where it says so.

Does not: check the quality of embeddings or of tool calls.
"""

from __future__ import annotations

import base64
import json
import math
import struct
from typing import Any

from openhearth.conform.openai import (
    CHAT,
    GREEDY,
    USER,
    middle_of,
    read_chat,
    read_chunks,
    read_error,
    read_usage,
)
from openhearth.conform.records import expect, has, one_of, shown
from openhearth.conform.wire import Peer, Reply

COMPLETIONS, EMBEDDINGS = "/v1/completions", "/v1/embeddings"
PLAIN = {"prompt": "Once upon a time", "temperature": 0, "max_tokens": 16}
TOOL = {"type": "function", "function": {
    "name": "get_weather", "description": "Weather of a city.",
    "parameters": {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}},
                   "required": ["city"], "additionalProperties": False}}}
ASKING = {"messages": [{"role": "user", "content": "What is the weather in Paris?"}], "tools": [TOOL],
          "temperature": 0, "max_tokens": 400, "parallel_tool_calls": False}
SCHEMA = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 20},
                                           "is_big": {"type": "boolean"}},
          "required": ["name", "is_big"], "additionalProperties": False}


def read_completion(reply: Reply) -> dict[str, Any]:
    """Return a text completion whose shape is right. Raises: Broken."""
    answer = has(reply.ok(), "the answer", id=str, object=str, created=int, model=str, choices=list,
                 usage=dict)
    one_of(answer["object"], "`object`", "text_completion")
    for place, choice in enumerate(answer["choices"]):
        has(choice, f"choices[{place}]", text=str, index=int, finish_reason=str)
    read_usage(answer["usage"])
    return answer


def completions_answer(peer: Peer) -> None:
    """A text completion has its shape; streamed, the pieces are its text."""
    whole = read_completion(peer.served(peer.post(COMPLETIONS, **PLAIN)))["choices"][0]
    chunks = read_chunks(peer.post(COMPLETIONS, **PLAIN, stream=True), "text_completion")
    text = "".join(choice["text"] for chunk in chunks for choice in chunk["choices"])
    expect(text == whole["text"], f"the stream says {shown(text)}, the answer {shown(whole['text'])}")


def completions_stop(peer: Peer) -> None:
    """`stop` ends a text completion before the text."""
    whole = read_completion(peer.served(peer.post(COMPLETIONS, **PLAIN)))["choices"][0]["text"]
    stop = middle_of(whole)
    choice = read_completion(peer.post(COMPLETIONS, **PLAIN, stop=[stop]))["choices"][0]
    expect(choice["text"] == whole[:whole.index(stop)], f"{shown(whole)} becomes {shown(choice['text'])}")


def several_prompts(peer: Peer) -> None:
    """A list of prompts gives choices in its order."""
    prompts = [PLAIN["prompt"], "The capital of France is"]
    alone = [read_completion(peer.served(peer.post(COMPLETIONS, **{**PLAIN, "prompt": prompt})))["choices"][0]
             for prompt in prompts]
    both = read_completion(peer.done(peer.post(COMPLETIONS, **{**PLAIN, "prompt": prompts})))["choices"]
    expect([choice["index"] for choice in both] == [0, 1], "the indexes are not 0 and 1")
    expect([choice["text"] for choice in both] == [choice["text"] for choice in alone],
           "together the prompts have other answers than alone")


def prompts_of_tokens(peer: Peer) -> None:
    """A prompt may be token ids."""
    usage = read_completion(peer.served(peer.done(peer.post(
        COMPLETIONS, prompt=[70, 71, 72, 73], max_tokens=2, temperature=0))))["usage"]
    expect(usage["prompt_tokens"] in (4, 5), f"4 tokens are {usage['prompt_tokens']} `prompt_tokens`")


def an_echo_scores_its_prompt(peer: Peer) -> None:
    """`echo` with `logprobs` and `max_tokens: 0`: the prompt's log-probabilities, the first one null."""
    prompt = "The capital of France is Paris."
    reply = peer.done(peer.post(COMPLETIONS, prompt=prompt, max_tokens=0, echo=True, logprobs=1))
    choice = has(peer.served(reply).ok(), "the answer", choices=list)["choices"][0]
    expect(choice["text"].strip() == prompt, f"the echo is {shown(choice['text'])}")
    found = has(choice["logprobs"], "`logprobs`", tokens=list, token_logprobs=list, top_logprobs=list,
                text_offset=list)
    expect(len({len(entries) for entries in found.values() if isinstance(entries, list)}) == 1,
           "the lists of `logprobs` differ in length")
    first, *rest = found["token_logprobs"]
    expect(first is None and rest and all(isinstance(one, int | float) and one <= 1e-6 for one in rest),
           f"`token_logprobs` are {shown(found['token_logprobs'])}")


def a_tool_is_called(peer: Peer) -> None:
    """`tool_choice: required` gives a tool call whose arguments are a JSON text that fits."""
    reply = peer.done(peer.post(CHAT, **ASKING, tool_choice="required"))
    choice = read_chat(peer.served(reply))["choices"][0]
    one_of(choice["finish_reason"], "`finish_reason`", "tool_calls")
    calls = has(choice["message"], "the message", tool_calls=list)["tool_calls"]
    expect(calls, "`tool_calls` is empty")
    for call in calls:
        has(call, "a tool call", id=str, type=str, function=dict)
        check_call(has(call["function"], "the function", name=str, arguments=str))
    turn = [*ASKING["messages"], {"role": "assistant", "content": None, "tool_calls": calls},
            *({"role": "tool", "tool_call_id": call["id"], "content": "Sunny."} for call in calls)]
    read_chat(peer.post(CHAT, **{**ASKING, "messages": turn}))


def a_tool_call_is_streamed(peer: Peer) -> None:
    """Fragments of a tool call: `index` in each, `id` and `name` once, arguments joined."""
    reply = peer.done(peer.post(CHAT, **ASKING, tool_choice="required", stream=True))
    fragments = []
    for chunk in read_chunks(peer.served(reply), "chat.completion.chunk"):
        for choice in chunk["choices"]:
            fragments += choice["delta"].get("tool_calls") or []
    expect(fragments, "no delta has `tool_calls`")
    calls: dict[int, dict[str, str]] = {}
    for fragment in fragments:
        function = has(fragment, "a fragment", index=int).get("function") or {}
        call = calls.setdefault(fragment["index"], {"id": "", "name": "", "arguments": ""})
        call["id"] += fragment.get("id") or ""
        call["name"] += function.get("name") or ""
        call["arguments"] += function.get("arguments") or ""
    for call in calls.values():
        expect(call["id"], "a call has no `id`")
        check_call(call)


def check_call(call: dict[str, str]) -> None:
    """Check that a call of TOOL fits it. Raises: Broken."""
    expect(call["name"] == "get_weather", f"the function's name is {shown(call['name'])}")
    try:
        arguments = json.loads(call["arguments"])
    except ValueError:
        arguments = None
    expect(isinstance(arguments, dict) and list(arguments) == ["city"] and isinstance(arguments["city"], str),
           f"`arguments` {shown(call['arguments'])} do not fit the function")


def a_schema_is_followed(peer: Peer) -> None:
    """`response_format` with a strict JSON schema gives JSON that fits."""
    answer = read_chat(peer.served(peer.done(peer.post(
        CHAT, messages=USER, temperature=0, max_tokens=200, response_format={
            "type": "json_schema", "json_schema": {"name": "thing", "strict": True, "schema": SCHEMA}}))))
    check_thing(answer["choices"][0]["message"]["content"])


def check_thing(text: str) -> None:
    """Check that a text is JSON of SCHEMA. Raises: Broken."""
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    expect(isinstance(value, dict) and sorted(value) == ["is_big", "name"] and isinstance(value["name"], str)
           and isinstance(value["is_big"], bool), f"the answer {shown(text)} does not fit the schema")


def json_is_answered(peer: Peer) -> None:
    """`response_format` of `json_object` gives a JSON object, or `length`."""
    reply = peer.done(peer.post(CHAT, messages=[{"role": "user", "content": "Name a city, as JSON."}],
                                temperature=0, max_tokens=300, response_format={"type": "json_object"}))
    choice = read_chat(peer.served(reply))["choices"][0]
    if choice["finish_reason"] == "length":
        return
    try:
        is_object = isinstance(json.loads(choice["message"]["content"]), dict)
    except ValueError:
        is_object = False
    expect(is_object, f"the answer {shown(choice['message']['content'])} is no JSON object")


def embeddings_come(peer: Peer) -> None:
    """`/v1/embeddings`: one vector for each input, in order; base64 holds the same numbers."""
    texts = ["A cat.", "A completely different sentence about trains."]
    plain = peer.served(peer.done(peer.post(EMBEDDINGS, input=texts, encoding_format="float")))
    vectors = _vectors(plain)
    expect(len(vectors) == 2 and len(vectors[0]) == len(vectors[1]) > 1, "expected two vectors of one length")
    encoded = has(peer.post(EMBEDDINGS, input=texts, encoding_format="base64").ok(), "the answer", data=list)
    for entry, vector in zip(encoded["data"], vectors, strict=True):
        expect(isinstance(entry["embedding"], str), "`embedding` is no text with base64")
        content = base64.b64decode(entry["embedding"])
        found = struct.unpack(f"<{len(content) // 4}f", content)
        expect(len(found) == len(vector) and all(
            math.isclose(one, other, rel_tol=1e-4, abs_tol=1e-5)
            for one, other in zip(found, vector, strict=True)), "base64 holds other numbers")
    alone = _vectors(peer.post(EMBEDDINGS, input=texts[1]))[0]
    expect(all(math.isclose(one, other, rel_tol=1e-2, abs_tol=1e-3)
               for one, other in zip(alone, vectors[1], strict=True)), "alone a text has another vector")


def embeddings_are_cut(peer: Peer) -> None:
    """`dimensions` gives the first ones, of length 1 again."""
    vector = _vectors(peer.served(peer.done(peer.post(EMBEDDINGS, input="A cat.", dimensions=8,
                                                      encoding_format="float"))))[0]
    expect(len(vector) == 8, f"{len(vector)} numbers, expected 8")
    expect(math.isclose(math.hypot(*vector), 1.0, abs_tol=1e-3), f"its length is {math.hypot(*vector):.4f}")


def _vectors(reply: Reply) -> list[list[float]]:
    answer = has(reply.ok(), "the answer", object=str, data=list, model=str, usage=dict)
    one_of(answer["object"], "`object`", "list")
    has(answer["usage"], "`usage`", prompt_tokens=int, total_tokens=int)
    for place, entry in enumerate(answer["data"]):
        has(entry, "an embedding", index=int, embedding=list)
        expect(entry["index"] == place, "`index` is out of order")
    return [entry["embedding"] for entry in answer["data"]]


def what_is_wrong_in_completions_is_refused(peer: Peer) -> None:
    """Wrong fields of `/v1/completions` are 400 (or 422) with an error object."""
    peer.served(peer.post(COMPLETIONS, **PLAIN))
    for wrong in ({"prompt": {"a": 1}}, {"prompt": [[]]}, {**PLAIN, "max_tokens": "many"},
                  {**PLAIN, "logprobs": -1}, {"prompt": [2**40]}):
        reply = peer.post(COMPLETIONS, **wrong)
        expect(reply.status in (400, 422), f"{shown(json.dumps(wrong))} has status {reply.status}")
        read_error(reply, 400, 422)
    read_error(peer.post(COMPLETIONS, {**GREEDY, "model": peer.model}), 400, 422)


CHECKS = (completions_answer, completions_stop, several_prompts, prompts_of_tokens, an_echo_scores_its_prompt,
          what_is_wrong_in_completions_is_refused, a_tool_is_called, a_tool_call_is_streamed,
          a_schema_is_followed, json_is_answered, embeddings_come, embeddings_are_cut)
