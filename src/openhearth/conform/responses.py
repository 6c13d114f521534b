"""OpenAI's Responses API: its answers, events, functions, formats, and what is kept.

What is checked: `openai` 3.54.0 (types, events) and the public API reference. What a server may leave out is
reported as not served where it says so.

Does not: check tools that run at the server.
"""

from __future__ import annotations

from typing import Any

from openhearth.conform.openai import USER, read_error
from openhearth.conform.openai_more import SCHEMA, TOOL, check_call, check_thing
from openhearth.conform.records import expect, has, one_of, shown
from openhearth.conform.wire import Peer, data_of

RESPONSES = "/v1/responses"
PLAIN = {"input": USER[0]["content"], "temperature": 0, "max_output_tokens": 24}
ASKING = {"input": [{"role": "user", "content": "What is the weather in Paris?"}], "temperature": 0,
          "tools": [{"type": "function", **TOOL["function"], "strict": True}], "max_output_tokens": 400,
          "parallel_tool_calls": False}


def read_response(value: Any) -> dict[str, Any]:
    """Return a Response whose shape is right. Raises: Broken."""
    answer = has(value, "the response", id=str, object=str, created_at=(int, float), model=str, output=list,
                 parallel_tool_calls=bool, tools=list, status=str)
    one_of(answer["object"], "`object`", "response")
    for item in answer["output"]:
        has(item, "an item of `output`", type=str, id=str)
    return answer


def _asked(peer: Peer, **fields: Any) -> dict[str, Any]:
    return read_response(peer.served(peer.done(peer.post(RESPONSES, **fields))).ok())


def _events(peer: Peer, **fields: Any) -> list[dict[str, Any]]:
    """Return the events of a streamed response whose frame is right. Raises: Broken."""
    events = peer.served(peer.done(peer.post(RESPONSES, **fields, stream=True))).events()
    values = [data_of(event) for event in events if event[1] != "[DONE]"]
    kinds = [has(value, "an event", type=str, sequence_number=int)["type"] for value in values]
    expect([name for name, data in events if data != "[DONE]"] == kinds, "an `event:` line is not the `type`")
    expect([value["sequence_number"] for value in values] == list(range(len(values))),
           "`sequence_number` does not count from 0")
    expect(kinds[:2] == ["response.created", "response.in_progress"], f"the stream begins with {kinds[:2]}")
    one_of(kinds[-1], "the last event", "response.completed", "response.incomplete")
    return values


def _in_order(values: list[dict[str, Any]], *wanted: str) -> None:
    kinds = [value["type"].removeprefix("response.") for value in values]
    places = [kinds.index(kind) if kind in kinds else -1 for kind in wanted]
    expect(-1 not in places and places == sorted(places), f"the events come as {shown(kinds)}")


def _text_of(answer: dict[str, Any]) -> str:
    return "".join(part["text"] for item in answer["output"] if item["type"] == "message"
                   for part in item["content"] if part["type"] == "output_text")


def responses_answer(peer: Peer) -> None:
    """`/v1/responses` has its shape, with usage in its own names."""
    answer = _asked(peer, **PLAIN)
    one_of(answer["status"], "`status`", "completed", "incomplete")
    has(has(answer, "the response", usage=dict)["usage"], "`usage`", input_tokens=int, output_tokens=int,
        total_tokens=int, input_tokens_details=dict, output_tokens_details=dict)
    expect(_text_of(answer), "there is no `output_text`")


def responses_stream(peer: Peer) -> None:
    """Events of `/v1/responses`: named, numbered from 0, in order, and the deltas are the answer."""
    values = _events(peer, **PLAIN)
    _in_order(values, "output_item.added", "content_part.added", "output_text.delta", "output_text.done",
              "content_part.done", "output_item.done")
    text = "".join(value["delta"] for value in values if value["type"] == "response.output_text.delta")
    answer = read_response(has(values[-1], "the last event", response=dict)["response"])
    expect(text == _text_of(answer), f"the deltas say {shown(text)}, the response {shown(_text_of(answer))}")


def _calls_of(answer: dict[str, Any]) -> list[dict[str, Any]]:
    calls = [item for item in answer["output"] if item["type"] == "function_call"]
    expect(calls, "`output` has no `function_call`")
    for call in calls:
        check_call(has(call, "a function call", call_id=str, name=str, arguments=str))
    return calls


def a_function_is_called(peer: Peer) -> None:
    """`tool_choice: required` gives a `function_call` that fits; with its output the answer goes on."""
    calls = _calls_of(_asked(peer, **ASKING, tool_choice="required"))
    turn = [*ASKING["input"], *calls, *({"type": "function_call_output", "call_id": call["call_id"],
                                         "output": "Sunny."} for call in calls)]
    read_response(peer.post(RESPONSES, **{**ASKING, "input": turn}).ok())


def a_function_call_is_streamed(peer: Peer) -> None:
    """Events of a function call: its item, arguments in deltas, then whole."""
    values = _events(peer, **ASKING, tool_choice="required")
    begun = [value for value in values if value["type"] == "response.output_item.added"
             and has(value, "an event", item=dict)["item"].get("type") == "function_call"]
    expect(begun, "no `response.output_item.added` has a `function_call`")
    first = values.index(begun[0])
    _in_order(values[first:], "output_item.added", "function_call_arguments.delta",
              "function_call_arguments.done", "output_item.done")
    call = _calls_of(read_response(has(values[-1], "the last event", response=dict)["response"]))[0]
    text = "".join(value["delta"] for value in values if value.get("item_id") == call["id"]
                   and value["type"] == "response.function_call_arguments.delta")
    expect(text == call["arguments"], f"the deltas say {shown(text)}, the call {shown(call['arguments'])}")


def a_text_format_is_followed(peer: Peer) -> None:
    """`text.format` with a strict JSON schema gives JSON that fits."""
    check_thing(_text_of(_asked(peer, **{**PLAIN, "max_output_tokens": 200}, text={
        "format": {"type": "json_schema", "name": "thing", "strict": True, "schema": SCHEMA}})))


def a_response_is_kept(peer: Peer) -> None:
    """With `store` a response can be read, gone on from by `previous_response_id`, and deleted."""
    answer = _asked(peer, **PLAIN, store=True)
    path = f"{RESPONSES}/{answer['id']}"
    kept = read_response(peer.done(peer.served(peer.get(path))).ok())
    expect((kept["id"], _text_of(kept)) == (answer["id"], _text_of(answer)), "what is kept is another answer")
    after = _asked(peer, **PLAIN, store=False, previous_response_id=answer["id"])
    counts = [has(one["usage"], "`usage`", input_tokens=int)["input_tokens"] for one in (answer, after)]
    expect(counts[1] > counts[0], f"`previous_response_id` adds no `input_tokens`: {counts}")
    has(peer.delete(path).ok(), "the answer to DELETE", id=str, deleted=bool)
    read_error(peer.get(path), 404)


CHECKS = (responses_answer, responses_stream, a_function_is_called, a_function_call_is_streamed,
          a_text_format_is_followed, a_response_is_kept)
