"""Tools, schemas and thoughts of the Responses API by the official client, of a model that knows nothing."""

import json
from typing import Literal

import jsonschema
import openai
import pydantic
import pytest
from openai.types import responses as types
from support.serving import serving
from support.thinker import build_thinker

from openhearth.server import ResponseStore

ASK = "the quick brown fox"


class Weather(pydantic.BaseModel):
    """Weather of a city."""

    model_config = pydantic.ConfigDict(extra="forbid")
    city: Literal["Paris", "Z\u00fcrich", "\u6771\u4eac"]
    days: Literal[1, 2, 3]


SCHEMAS = {"weather": Weather.model_json_schema(),
           "now": {"type": "object", "properties": {}, "additionalProperties": False}}
TOOLS = [{"type": "function", "name": name, "description": "d", "parameters": schema, "strict": None}
         for name, schema in SCHEMAS.items()]
FORM = {"format": {"type": "json_schema", "name": "w", "schema": SCHEMAS["weather"], "strict": True}}
QUIET = {"reasoning": {"effort": "none"}}
END = {"2": 12}  # a random model goes on where it may; this one rather ends
LOGPROBS = {"include": ["message.output_text.logprobs"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("thinker") / "thinker"
    build_thinker(path)
    return path


@pytest.fixture(scope="module")
def store():
    return ResponseStore(None)


@pytest.fixture(scope="module")
def client(folder, store, tmp_path_factory):
    with serving(folder, tmp_path_factory.mktemp("home"), responses=store) as server:
        yield openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def marks(folder):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    return {text: str(tokenizer.convert_tokens_to_ids(text)) for text in ("<think>", "</think>")}


def ask(client, *, seed=1, bias=END, **settings):
    return client.responses.create(**{
        "model": "tiny", "input": ASK, "max_output_tokens": 300, "temperature": 2,
        "extra_body": {"seed": seed, "logit_bias": bias}, **QUIET, **settings})


def said(items):
    """Return what items say, without their ids."""
    return [{name: value for name, value in item.model_dump().items() if name not in ("id", "call_id")}
            for item in items]


def follow(events):
    """Check a stream against the client's types and its own order; return the items as events told them."""
    assert [event.sequence_number for event in events] == list(range(len(events)))
    items, text, open_id = [], "", None
    for event in events:
        type(event).model_validate(event.model_dump(by_alias=True))
        kind = event.type.removeprefix("response.")
        if hasattr(event, "output_index"):
            assert event.output_index == len(items)
        if hasattr(event, "item_id"):
            assert event.item_id == open_id
        if kind == "output_item.added":
            assert open_id is None and event.item.status == "in_progress"
            text, open_id = "", event.item.id
        elif kind == "content_part.added":
            assert event.part.text == "" and event.content_index == 0
        elif kind.endswith(".delta"):
            text += event.delta
        elif kind in ("output_text.done", "reasoning_text.done"):
            assert event.text == text
        elif kind == "function_call_arguments.done":
            assert event.arguments == text
        elif kind == "content_part.done":
            assert event.part.text == text
        elif kind == "output_item.done":
            assert event.item.id == open_id
            items, open_id = [*items, event.item], None
    assert open_id is None and items == events[-1].response.output
    return items


def check_calls(items):
    for item in items:
        assert item.type == "function_call" and item.id.startswith("fc_") and item.id != item.call_id
        jsonschema.validate(json.loads(item.arguments), SCHEMAS[item.name])


@pytest.mark.parametrize("settings,counts,names", [
    ({"tool_choice": "required"}, {1, 2, 3, 4, 5}, set(SCHEMAS)),
    ({"tool_choice": "required", "parallel_tool_calls": False}, {1}, set(SCHEMAS)),
    ({"tool_choice": {"type": "function", "name": "weather"}}, {1}, {"weather"}),
    ({"tool_choice": {"type": "allowed_tools", "mode": "required",
                      "tools": [{"type": "function", "name": "now"}]}}, {1, 2, 3, 4, 5}, {"now"}),
])
def test_required_calls_are_items_whole_and_streamed(client, settings, counts, names):
    for seed in range(2):
        whole = ask(client, tools=TOOLS, seed=seed, **settings)
        types.Response.model_validate(whole.model_dump(by_alias=True))
        check_calls(whole.output)
        assert (len(whole.output) in counts, whole.status, whole.output_text) == (True, "completed", "")
        assert {item.name for item in whole.output} <= names
        assert len({item.call_id for item in whole.output}) == len(whole.output)
        assert (whole.tools[0].name, whole.parallel_tool_calls) == (
            "weather", settings.get("parallel_tool_calls", True))
        events = list(ask(client, tools=TOOLS, seed=seed, stream=True, **settings))
        assert said(follow(events)) == said(whole.output)
        kinds = {event.type.removeprefix("response.") for event in events}
        assert {"function_call_arguments.delta", "function_call_arguments.done"} <= kinds
        assert client.responses.retrieve(events[-1].response.id) == events[-1].response


def test_the_helpers_of_the_client_parse_answers_and_calls(client):
    settings = {"model": "tiny", "input": ASK, **QUIET, "extra_body": {"seed": 3}}
    parsed = client.responses.parse(text_format=Weather, **settings)
    assert isinstance(parsed.output_parsed, Weather)
    with client.responses.stream(text_format=Weather, **settings) as stream:
        done = [event.parsed for event in stream if event.type == "response.output_text.done"]
        assert done == [parsed.output_parsed] == [stream.get_final_response().output_parsed]
    settings |= {"tools": [openai.pydantic_responses_function_tool(Weather, name="weather")],
                 "tool_choice": "required"}
    parsed = client.responses.parse(**settings)
    with client.responses.stream(**settings) as stream:
        snapshots = [event.snapshot for event in stream
                     if event.type == "response.function_call_arguments.delta"]
        final = stream.get_final_response()
    assert isinstance(parsed.output[0].parsed_arguments, Weather)
    calls, again = parsed.output, final.output
    assert [call.parsed_arguments for call in again] == [call.parsed_arguments for call in calls]
    assert final.output[0].arguments in snapshots


def test_the_answer_has_the_form_that_was_asked_for(client):
    for seed in range(2):
        whole = ask(client, seed=seed, text=FORM)
        Weather.model_validate_json(whole.output_text)
        assert whole.text.format.model_dump(by_alias=True)["schema"] == SCHEMAS["weather"]
        assert said(follow(list(ask(client, seed=seed, text=FORM, stream=True)))) == said(whole.output)
    free = ask(client, text={"format": {"type": "json_object"}}, max_output_tokens=40)
    assert free.output_text.startswith("{")
    cut = ask(client, text=FORM, max_output_tokens=3)
    assert (cut.status, cut.output[0].status) == ("incomplete", "incomplete")
    assert ask(client, text={"format": {"type": "text"}}).output_text == ask(client).output_text


def test_thoughts_are_items_and_counted(client, marks):
    bias = {**END, marks["<think>"]: 20, marks["</think>"]: 20}
    settings = {"text": FORM, "max_output_tokens": 600, "reasoning": openai.omit, "bias": bias, **LOGPROBS}
    kinds = set()
    for seed in range(2):
        whole = ask(client, seed=seed, **settings)
        types.Response.model_validate(whole.model_dump(by_alias=True))
        *thoughts, message = whole.output
        kinds |= {item.type for item in thoughts}
        assert message.type == "message" and Weather.model_validate_json(whole.output_text)
        assert [item.content[0].type for item in thoughts] == ["reasoning_text"] * len(thoughts)
        assert 0 < whole.usage.output_tokens_details.reasoning_tokens < whole.usage.output_tokens
        drawn = b"".join(bytes(one.bytes) for one in message.content[0].logprobs)
        assert drawn.decode().strip() == whole.output_text, "no token of a thought"
        events = list(ask(client, seed=seed, stream=True, **settings))
        assert said(follow(events)) == said(whole.output)
        deltas = "".join(event.delta for event in events if event.type == "response.reasoning_text.delta")
        assert deltas == "".join(item.content[0].text for item in thoughts)
    assert kinds == {"reasoning"}
    cut = ask(client, reasoning=openai.omit, bias={marks["<think>"]: 100}, temperature=0, max_output_tokens=1)
    assert cut.usage.output_tokens_details.reasoning_tokens == 1


def count(client, items, **settings):
    return client.responses.input_tokens.count(model="tiny", input=items, **settings).input_tokens


def test_items_are_rendered_as_the_template_says(client, folder):
    from transformers import AutoTokenizer

    items = [{"role": "user", "content": ASK},
             {"type": "reasoning", "id": "rs_1", "summary": [],
              "content": [{"type": "reasoning_text", "text": "which city"}]},
             {"type": "message", "role": "assistant", "content": "I look."},
             {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": '{"city": "Paris"}'},
             {"type": "function_call", "call_id": "c2", "name": "now", "arguments": "{}"},
             {"type": "function_call_output", "call_id": "c1", "output": '{"t": 3}'},
             {"type": "function_call_output", "call_id": "c2",
              "output": [{"type": "input_text", "text": "noon"}]}]
    messages = [{"role": "user", "content": ASK},
                {"role": "assistant", "content": "I look.", "reasoning_content": "which city", "tool_calls": [
                    {"type": "function", "function": {"name": "weather", "arguments": {"city": "Paris"}}},
                    {"type": "function", "function": {"name": "now", "arguments": {}}}]},
                {"role": "tool", "content": '{"t": 3}'}, {"role": "tool", "content": "noon"}]
    seen = [{"type": "function", "function": {
        name: one[name] for name in ("name", "description", "parameters")}} for one in TOOLS]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for tools, shown in ((TOOLS, seen), (openai.omit, None)):
        text = tokenizer.apply_chat_template(messages, tools=shown, tokenize=False,
                                             add_generation_prompt=True, enable_thinking=False)
        assert "which city" in text
        assert count(client, items, tools=tools, **QUIET) == len(
            tokenizer(text, add_special_tokens=False)["input_ids"])


def test_a_call_is_answered_by_its_id_from_what_is_stored_or_given(client):
    called = ask(client, tools=TOOLS, tool_choice="required", parallel_tool_calls=False)
    [call] = called.output
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "3 degrees"}
    settings = {"tools": TOOLS, "seed": 5}
    stored = ask(client, input=[result], previous_response_id=called.id, **settings)
    given = ask(client, input=[{"role": "user", "content": ASK}, *called.output, result], **settings)
    assert said(stored.output) == said(given.output)
    assert stored.usage.input_tokens == given.usage.input_tokens > called.usage.input_tokens
    listed = client.responses.input_items.list(given.id, order="asc").data
    assert [item.type for item in listed] == ["message", "function_call", "function_call_output"]
    assert (listed[1].call_id, listed[2].output) == (call.call_id, "3 degrees")
    for item in listed:
        type(item).model_validate(item.model_dump(by_alias=True))


def test_what_an_earlier_version_stored_is_gone_on_from(client, store):
    part = {"type": "output_text", "text": "a dog", "annotations": [], "logprobs": []}
    old = {"id": "resp_old", "object": "response", "created_at": 1, "status": "completed", "model": "tiny",
           "error": None, "incomplete_details": None, "instructions": None, "previous_response_id": None,
           "parallel_tool_calls": True, "tool_choice": "auto", "tools": [], "usage": None,
           "text": {"format": {"type": "text"}}, "reasoning": {"effort": None, "summary": None}, "output": [
               {"type": "message", "id": "msg_2", "status": "completed", "role": "assistant",
                "content": [part]}]}
    store.put("", old, [{"type": "message", "id": "msg_1", "status": "completed", "role": "user",
                         "content": [{"type": "input_text", "text": ASK}]}])
    used = count(client, "why?", previous_response_id="resp_old", **QUIET)
    assert used == count(client, [{"role": "user", "content": ASK}, {"role": "assistant", "content": "a dog"},
                                  {"role": "user", "content": "why?"}], **QUIET)
    assert client.responses.retrieve("resp_old").output_text == "a dog"
