"""Anthropic's dialect: messages, their streams, counts of tokens, errors.

What is checked: `anthropic` 2.12.0 (types, streaming). Its client passes over every event without an `event:`
line, and raises when blocks are out of order.

Does not: check thinking, images or documents.
"""

from __future__ import annotations

import json
from typing import Any

from openhearth.conform.openai import USER, middle_of
from openhearth.conform.records import Broken, NotServed, expect, has, one_of, shown
from openhearth.conform.wire import Peer, Reply, data_of

MESSAGES, COUNT = "/v1/messages", "/v1/messages/count_tokens"
GREEDY = {"messages": USER, "temperature": 0, "max_tokens": 24}
TOOL = {"name": "get_weather", "description": "Weather of a city.",
        "input_schema": {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}},
                         "required": ["city"], "additionalProperties": False}}
ASKING = {"messages": [{"role": "user", "content": "What is the weather in Paris?"}], "tools": [TOOL],
          "temperature": 0, "max_tokens": 400,
          "tool_choice": {"type": "any", "disable_parallel_tool_use": True}}
_REASONS = ("end_turn", "max_tokens", "stop_sequence", "tool_use", "refusal", "pause_turn",
            "model_context_window_exceeded")
_VERSION = {"anthropic-version": "2023-06-01"}


def ask(peer: Peer, **fields: Any) -> Reply:
    """Send a message as the client does."""
    return peer.served(peer.post(MESSAGES, headers=_VERSION, **fields))


def read_message(reply: Reply) -> dict[str, Any]:
    """Return a message whose shape is right. Raises: Broken."""
    answer = has(reply.ok(), "the message", id=str, type=str, role=str, model=str, content=list,
                 stop_reason=str, stop_sequence=(str, None), usage=dict)
    one_of(answer["type"], "`type`", "message")
    one_of(answer["role"], "`role`", "assistant")
    one_of(answer["stop_reason"], "`stop_reason`", *_REASONS)
    for block in answer["content"]:
        if has(block, "a block", type=str)["type"] == "text":
            has(block, "a text block", text=str)
    has(answer["usage"], "`usage`", input_tokens=int, output_tokens=int)
    return answer


def text_of(answer: dict[str, Any]) -> str:
    """Return the text of a message."""
    return "".join(block["text"] for block in answer["content"] if block["type"] == "text")


def read_stream(reply: Reply) -> dict[str, Any]:
    """Return the message that a stream's events build, in their order. Raises: Broken."""
    message: dict[str, Any] = {}
    blocks: list[dict[str, Any]] = []
    is_open, has_ended, joined = False, False, ""
    for event in reply.events():
        value = has(data_of(event), "an event", type=str)
        kind = value["type"]
        expect(event[0] == kind, f"the event `{kind}` has the line `event: {event[0]}`: clients pass over it")
        expect(not has_ended, f"`{kind}` comes after `message_stop`")
        if kind == "ping":
            continue
        if kind == "error":
            raise Broken(f"the stream has the error {shown(value)}")
        if kind == "message_start":
            expect(not message, "a second `message_start`")
            message = has(value["message"], "the message", id=str, type=str, role=str, content=list,
                          model=str, stop_reason=None, stop_sequence=None, usage=dict)
            has(message["usage"], "`usage`", input_tokens=int, output_tokens=int)
            continue
        expect(message, f"`{kind}` comes before `message_start`")
        if kind == "content_block_start":
            expect(not is_open and value["index"] == len(blocks), "a block begins out of order")
            blocks.append(dict(has(value, kind, content_block=dict)["content_block"]))
            is_open, joined = True, ""
        elif kind == "content_block_delta":
            expect(is_open and value["index"] == len(blocks) - 1, "a delta belongs to no open block")
            delta = has(has(value, kind, delta=dict)["delta"], "the delta", type=str)
            if delta["type"] == "text_delta":
                blocks[-1]["text"] += has(delta, "the delta", text=str)["text"]
            elif delta["type"] == "input_json_delta":
                joined += has(delta, "the delta", partial_json=str)["partial_json"]
        elif kind == "content_block_stop":
            expect(is_open and value["index"] == len(blocks) - 1, "a block ends that is not open")
            is_open = False
            if blocks[-1].get("type") == "tool_use":
                blocks[-1]["input"] = _object(joined)
        elif kind == "message_delta":
            expect(not is_open, "`message_delta` comes while a block is open")
            has(value, kind, delta=dict, usage=dict)
            has(value["usage"], "`usage`", output_tokens=int)
            message |= value["delta"]
            message["usage"] = {**message["usage"], **value["usage"]}
        else:
            one_of(kind, "an event's `type`", "message_stop")
            one_of(message["stop_reason"], "`stop_reason`", *_REASONS)
            has_ended = True
    expect(has_ended, "the stream has no `message_stop`")
    return {**message, "content": blocks}


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text or "{}")
    except ValueError:
        value = None
    expect(isinstance(value, dict), f"the joined `partial_json` {shown(text)} is no object")
    return value


def read_error(reply: Reply, status: int, *kinds: str) -> None:
    """Check an error in Anthropic's shape. Raises: Broken."""
    expect(reply.status == status, f"status {reply.status}, expected {status}")
    body = has(reply.json(), "the body", type=str, error=dict)
    one_of(body["type"], "`type`", "error")
    one_of(has(body["error"], "`error`", type=str, message=str)["type"], "`error.type`", *kinds)


def messages_answer(peer: Peer) -> None:
    """A message has its shape, its text in blocks and its counts."""
    answer = read_message(ask(peer, **GREEDY))
    expect([block["type"] for block in answer["content"]] == ["text"], "expected one block of text")
    expect(answer["usage"]["input_tokens"] > 0, "`input_tokens` is 0")


def messages_end_for_length(peer: Peer) -> None:
    """`max_tokens: 1` ends with `max_tokens`."""
    answer = read_message(ask(peer, **{**GREEDY, "max_tokens": 1}))
    one_of(answer["stop_reason"], "`stop_reason`", "max_tokens", "end_turn")
    expect(answer["usage"]["output_tokens"] == 1, f"`output_tokens` is {answer['usage']['output_tokens']}")


def a_stream_is_the_message_in_pieces(peer: Peer) -> None:
    """Events come in their order, each with its `event:` line, and build the greedy answer."""
    whole = read_message(ask(peer, **GREEDY))
    streamed = read_stream(ask(peer, **GREEDY, stream=True))
    expect(text_of(streamed) == text_of(whole),
           f"the stream says {shown(text_of(streamed))}, the answer {shown(text_of(whole))}")
    expect(streamed["stop_reason"] == whole["stop_reason"], "the stream ends for another reason")
    expect(streamed["usage"]["output_tokens"] == whole["usage"]["output_tokens"],
           "`output_tokens` of the last `message_delta` is not that of the answer")


def a_stop_sequence_ends_the_message(peer: Peer) -> None:
    """`stop_sequences` end the answer before one, and say which."""
    whole = text_of(read_message(ask(peer, **GREEDY)))
    stop = middle_of(whole)
    for reader, is_streamed in ((read_message, False), (read_stream, True)):
        answer = reader(ask(peer, **GREEDY, stop_sequences=["\u0001 not there", stop], stream=is_streamed))
        expect(text_of(answer) == whole[:whole.index(stop)],
               f"with stop {shown(stop)} the answer {shown(whole)} becomes {shown(text_of(answer))}")
        found = (answer["stop_reason"], answer["stop_sequence"])
        expect(found == ("stop_sequence", stop), f"it ends with {shown(found)}")


def system_and_blocks_are_read(peer: Peer) -> None:
    """`system` is a text or blocks; content is a text or blocks; extra headers change nothing."""
    blocks = [{"type": "text", "text": USER[0]["content"]}]
    forms = ({"system": "Be brief."}, {"system": [{"type": "text", "text": "Be brief."}]}, {},
             {"messages": [{"role": "user", "content": blocks}]})
    counts = [read_message(ask(peer, **{**GREEDY, **form}))["usage"]["input_tokens"] for form in forms]
    is_same = counts[0] == counts[1] and counts[2] == counts[3]
    expect(is_same and counts[0] != counts[2], f"`input_tokens` are {counts} for the same words, two by two")


def tokens_are_counted(peer: Peer) -> None:
    """`count_tokens` says what the message then uses."""
    counted = has(peer.served(peer.post(COUNT, headers=_VERSION, messages=USER)).ok(), "the count",
                  input_tokens=int)["input_tokens"]
    used = read_message(ask(peer, **GREEDY))["usage"]["input_tokens"]
    expect(counted == used, f"{counted} counted, {used} used")


def a_tool_is_used(peer: Peer) -> None:
    """`tool_choice: any` gives a `tool_use` block with an object, streamed as `input_json_delta`."""
    whole = read_message(peer.done(ask(peer, **ASKING)))
    streamed = read_stream(ask(peer, **ASKING, stream=True))
    for answer in (whole, streamed):
        one_of(answer["stop_reason"], "`stop_reason`", "tool_use")
        [*_, block] = answer["content"]
        has(block, "the last block", type=str, id=str, name=str, input=dict)
        expect((block["type"], block["name"]) == ("tool_use", "get_weather"), f"the block is {shown(block)}")
        expect(isinstance(block["input"].get("city"), str), f"`input` is {shown(block['input'])}")
    used = whole["content"][-1]["id"]
    turn = [*ASKING["messages"], {"role": "assistant", "content": whole["content"]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": used, "content": "Sunny."}]}]
    read_message(ask(peer, **{**ASKING, "messages": turn, "tool_choice": {"type": "auto"}}))


def what_is_wrong_is_refused(peer: Peer) -> None:
    """Malformed JSON, missing and wrong fields are `invalid_request_error` with status 400."""
    ask(peer, **GREEDY)
    read_error(peer.post(MESSAGES, b'{"model": ', headers=_VERSION), 400, "invalid_request_error")
    for wrong in ({"messages": USER}, {"max_tokens": 5}, {**GREEDY, "max_tokens": -1},
                  {**GREEDY, "messages": [{"role": "nobody", "content": "x"}]},
                  {**GREEDY, "temperature": "hot"}):
        reply = peer.post(MESSAGES, headers=_VERSION, **wrong)
        expect(reply.status == 400, f"{shown(json.dumps(wrong))} has status {reply.status}")
        read_error(reply, 400, "invalid_request_error")


def an_unknown_model_is_not_found(peer: Peer) -> None:
    """A model that is not there is `not_found_error` with status 404."""
    ask(peer, **GREEDY)
    read_error(peer.post(MESSAGES, {**GREEDY, "model": "no-such-model"}, headers=_VERSION), 404,
               "not_found_error")


def keys_come_in_either_header(peer: Peer) -> None:
    """`x-api-key` alone lets in, and a wrong one is `authentication_error` with status 401."""
    if peer.key is None:
        raise NotServed("not checked: no --key was given")
    read_message(ask(peer, **GREEDY))
    body = {**GREEDY, "model": peer.model}
    read_message(peer.post(MESSAGES, body, headers={**_VERSION, "authorization": "", "x-api-key": peer.key}))
    wrong = {**_VERSION, "authorization": "", "x-api-key": "wrong"}
    read_error(peer.post(MESSAGES, body, headers=wrong), 401, "authentication_error")


CHECKS = (messages_answer, messages_end_for_length, a_stream_is_the_message_in_pieces,
          a_stop_sequence_ends_the_message, system_and_blocks_are_read, tokens_are_counted, a_tool_is_used,
          what_is_wrong_is_refused, an_unknown_model_is_not_found, keys_come_in_either_header)
