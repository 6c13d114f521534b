"""The Responses API by the official client, over a real socket."""

import asyncio
import json

import httpx
import openai
import pytest
from openai.types import responses as types
from support.serving import serving

from openhearth.accounts import Key, Keys, hash_secret
from openhearth.server import ResponseStore

ASK = {"model": "tiny", "input": "the quick brown fox"}
GREEDY = {"temperature": 0, "max_output_tokens": 12}
LOGPROBS = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
TOOL = {"type": "function", "name": "f"}
NEVER_ENDING = {"extra_body": {"logit_bias": {"2": -100}}}


@pytest.fixture(scope="module")
def running(tiny_folder, tmp_path_factory):
    with serving(tiny_folder, tmp_path_factory.mktemp("home")) as server:
        yield server


@pytest.fixture(scope="module")
def client(running):
    return openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0)


def chat(client, messages, **settings):
    return client.chat.completions.create(model="tiny", messages=messages, temperature=0, max_tokens=12,
                                          **settings)


def assert_strict(kind, value):
    """Validate a model of the client against its own types: requests alone build them unchecked."""
    kind.model_validate(value.model_dump(), strict=False)


def test_a_response_is_the_answer_of_chat(client):
    response = client.responses.create(**ASK, **GREEDY, **LOGPROBS, metadata={"topic": "foxes"})
    answer = chat(client, [{"role": "user", "content": ASK["input"]}], logprobs=True, top_logprobs=2)
    assert_strict(types.Response, response)
    assert response.output_text == answer.choices[0].message.content
    assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert response.metadata == {"topic": "foxes"}
    [item] = response.output
    drawn = item.content[0].logprobs
    assert [(one.token, one.logprob) for one in drawn] == [
        (one.token, one.logprob) for one in answer.choices[0].logprobs.content]
    assert (response.usage.input_tokens, response.usage.output_tokens) == (
        answer.usage.prompt_tokens, answer.usage.completion_tokens)
    assert response.usage.total_tokens == answer.usage.total_tokens
    ended = client.responses.create(**ASK, extra_body={"logit_bias": {"2": 100}})
    assert (ended.status, ended.output_text, ended.incomplete_details) == ("completed", "", None)


def test_instructions_and_items_are_messages(client):
    response = client.responses.create(model="tiny", instructions="be brief", **GREEDY, input=[
        {"role": "user", "content": "hello"}, {"type": "message", "role": "developer", "content": "now"},
        {"role": "assistant", "content": [{"type": "output_text", "text": "one", "annotations": []}]},
        {"role": "user", "content": [{"type": "input_text", "text": "two"},
                                     {"type": "input_text", "text": "three"}]}])
    answer = chat(client, [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"},
                           {"role": "system", "content": "now"}, {"role": "assistant", "content": "one"},
                           {"role": "user", "content": "two\nthree"}])
    assert response.output_text == answer.choices[0].message.content
    assert response.usage.input_tokens == answer.usage.prompt_tokens


@pytest.mark.parametrize("settings", [{}, LOGPROBS, {"extra_body": {"stop": ["e", "\u3044"], "seed": 5}}])
def test_events_are_those_that_the_client_wants_in_their_order(client, settings):
    settings = {**ASK, "temperature": 0, "max_output_tokens": 40, **settings}
    whole = client.responses.create(**settings)
    events = list(client.responses.create(stream=True, **settings))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    for event in events:
        type(event).model_validate(event.model_dump())
    kinds = [event.type.removeprefix("response.") for event in events]
    deltas = [event for event in events if event.type == "response.output_text.delta"]
    assert kinds == ["created", "in_progress", "output_item.added", "content_part.added",
                     *["output_text.delta"] * len(deltas), "output_text.done", "content_part.done",
                     "output_item.done", whole.status]
    assert "".join(event.delta for event in deltas) == whole.output_text == events[-4].text
    final = events[-1].response
    assert final.output[0].content == whole.output[0].content
    assert [one.model_dump() for event in deltas for one in event.logprobs] == [
        one.model_dump() for one in events[-4].logprobs]
    assert (final.usage.output_tokens, final.status) == (whole.usage.output_tokens, whole.status)
    assert events[0].response.id == final.id and client.responses.retrieve(final.id).output == final.output


def test_the_helpers_of_the_client_work_sync_and_async(running, client):
    settings = {**ASK, "extra_body": {"logit_bias": {"2": 6}, "seed": 1}}
    with client.responses.stream(**settings) as stream:
        pieces = [event.delta for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert final.status == "completed" and "".join(pieces) == final.output_text

    async def ask():
        async with openai.AsyncOpenAI(base_url=f"{running.url}/v1", api_key="none") as many:
            answers = await asyncio.gather(*(many.responses.create(**settings) for _ in range(4)))
            streamed = [event async for event in await many.responses.create(stream=True, **settings)]
            await many.responses.delete(answers[0].id)
            return {one.output_text for one in answers}, streamed[-1].response.output_text

    assert asyncio.run(ask()) == ({final.output_text}, final.output_text)
    running.wait_idle()


def test_a_conversation_goes_on_from_what_is_stored(client):
    first = client.responses.create(**ASK, **GREEDY, instructions="be brief")
    second = client.responses.create(model="tiny", input="and then?", previous_response_id=first.id, **GREEDY)
    third = client.responses.create(model="tiny", input="why?", previous_response_id=second.id, store=False,
                                    **GREEDY)
    spoken = [{"role": "user", "content": ASK["input"]}, {"role": "assistant", "content": first.output_text},
              {"role": "user", "content": "and then?"}]
    assert second.output_text == chat(client, spoken).choices[0].message.content
    assert third.previous_response_id == second.id
    assert third.usage.input_tokens == chat(client, [
        *spoken, {"role": "assistant", "content": second.output_text},
        {"role": "user", "content": "why?"}]).usage.prompt_tokens
    assert client.responses.input_tokens.count(
        model="tiny", input="why?", previous_response_id=second.id).input_tokens == third.usage.input_tokens
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(third.id)
    client.responses.delete(first.id)
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model="tiny", input="why?", previous_response_id=second.id)
    assert caught.value.code == "previous_response_not_found"


def test_what_was_given_is_listed_in_pages(client):
    response = client.responses.create(model="tiny", **GREEDY, input=[
        {"role": "user", "content": str(number)} for number in range(5)])
    listed = client.responses.input_items.list(response.id, limit=2)
    assert [item.content[0].text for item in listed] == ["4", "3", "2", "1", "0"], "the client turns pages"
    page = client.responses.input_items.list(response.id, limit=2, order="asc")
    assert [item.content[0].text for item in page.data] == ["0", "1"] and page.has_more
    assert page.data[0].id != page.data[1].id


def test_stored_ones_are_found_forgotten_and_not_cancelled(client):
    response = client.responses.create(**ASK, **GREEDY)
    assert client.responses.retrieve(response.id) == response
    with pytest.raises(openai.BadRequestError, match="cannot be cancelled"):
        client.responses.cancel(response.id)
    client.responses.delete(response.id)
    for act in (client.responses.retrieve, client.responses.delete, client.responses.cancel,
                client.responses.input_items.list):
        with pytest.raises(openai.NotFoundError):
            act(response.id)


@pytest.mark.parametrize("settings,field", [
    ({"tools": [{"type": "web_search"}]}, "tools[0].type"), ({"background": True}, "background"),
    ({"tools": [{"type": "function"}]}, "tools[0].name"),
    ({"tools": [{**TOOL, "strict": 1}]}, "tools[0].strict"),
    ({"tools": [TOOL, TOOL]}, "tools"), ({"tool_choice": "required"}, "tool_choice"),
    ({"tools": [TOOL], "tool_choice": {"type": "function", "name": "g"}}, "tool_choice"),
    ({"tools": [TOOL], "tool_choice": {"type": "function"}}, "tool_choice"),
    ({"tools": [TOOL], "tool_choice": {"type": "mcp"}}, "tool_choice.type"),
    ({"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": ["f"]}},
     "tool_choice.tools[0]"),
    ({"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "mode": "auto",
                                       "tools": [{"type": "function", "name": "g"}]}}, "tool_choice"),
    ({"tools": [{**TOOL, "parameters": {"not": {}}}], "tool_choice": "required"}, "tools"),
    ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
    ({"text": {"format": {"type": "json_schema", "name": "x", "schema": {"not": {}}}}}, "text.format"),
    ({"text": {"format": {"type": "text", "schema": {}}}}, "text.format"),
    ({"text": {"format": {"type": "grammar"}}}, "text.format.type"),
    ({"reasoning": {"effort": "high"}}, "reasoning.effort"),
    ({"reasoning": {"summary": "detailed"}}, "reasoning.summary"),
    ({"conversation": "c"}, "conversation"), ({"truncation": "auto"}, "truncation"),
    ({"include": ["file_search_call.results"]}, "include[0]"), ({"top_logprobs": 2}, "top_logprobs"),
    ({"metadata": {"a": 1}}, "metadata"), ({"metadata": {"a" * 65: "x"}}, "metadata"),
    ({"input": []}, "input"), ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role"),
    ({"input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]}, "input"),
    ({"input": [{"type": "function_call_output", "output": "x"}]}, "input[0].call_id"),
    ({"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": {}}]},
     "input[0].arguments"),
    ({"input": [{"type": "reasoning", "summary": [{"type": "summary_text", "text": "x"}]}]},
     "input[0].summary"), ({"input": [{"type": "reasoning", "encrypted_content": "x"}]},
                           "input[0].encrypted_content"),
    ({"input": [{"type": "reasoning", "content": [{"type": "text", "text": "x"}]}]}, "input[0].content[0]"),
    ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0].type"),
    ({"input": [{"type": {}}]}, "input[0].type"),
    ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
     "input[0].content[0]"), ({"input": [{"role": "user"}]}, "input[0].content"),
    ({"max_output_tokens": 0}, "max_output_tokens"),
    ({"previous_response_id": "none"}, "previous_response_id"),
    ({"previous_response_id": "\ud800"}, "previous_response_id"), ({"stream_options": {}}, "stream_options"),
])
def test_what_is_not_done_is_refused_by_name(running, settings, field):
    body = json.dumps({**ASK, **settings}).encode()
    reply = httpx.post(running.url + "/v1/responses", content=body)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, field), reply.text


@pytest.mark.parametrize("query,field", [
    ("?limit=0", "limit"), ("?limit=1e3", "limit"), ("?order=up", "order"), ("?after=none", "after"),
    ("?page=2", "page"),
])
def test_queries_are_read_or_refused(running, client, query, field):
    response = client.responses.create(**ASK, **GREEDY)
    reply = httpx.get(f"{running.url}/v1/responses/{response.id}/input_items{query}")
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, field)
    reply = httpx.get(f"{running.url}/v1/responses/{response.id}?stream=true")
    assert reply.json()["error"]["param"] == "stream"


def test_a_client_that_leaves_leaves_nothing(running, client):
    with client.responses.create(**ASK, stream=True, **NEVER_ENDING) as stream:
        first = next(iter(stream)).response.id
    running.wait_idle()
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first)


def test_a_response_that_fails_on_the_way_says_so(running, client):
    stream = iter(client.responses.create(**ASK, stream=True, **NEVER_ENDING))
    next(stream)

    def fail(engine):
        forward = engine._run

        def once(batch):
            engine._run = forward
            raise RuntimeError("broken on purpose")

        engine._run = once

    running.on_engine(fail)
    *_, last = stream
    assert last.type == "response.failed" and "broken on purpose" in last.response.error.message
    running.wait_idle()


def test_responses_belong_to_the_key_that_made_them_and_outlive_the_server(tiny_folder, tmp_path):
    keys = Keys(Key(name, hash_secret(name)) for name in ("alice", "bob"))
    path = tmp_path / "responses.db"

    def client_of(running, key):
        return openai.OpenAI(base_url=f"{running.url}/v1", api_key=key, max_retries=0)

    with serving(tiny_folder, tmp_path, keys=keys, responses=ResponseStore(path)) as running:
        alice, bob = client_of(running, "alice"), client_of(running, "bob")
        made = alice.responses.create(**ASK, **GREEDY)
        for act in (bob.responses.retrieve, bob.responses.delete, bob.responses.input_items.list):
            with pytest.raises(openai.NotFoundError):
                act(made.id)
        with pytest.raises(openai.BadRequestError):
            bob.responses.create(**ASK, previous_response_id=made.id)
    assert path.stat().st_mode & 0o077 == 0
    with serving(tiny_folder, tmp_path, keys=keys, responses=ResponseStore(path)) as running:
        alice = client_of(running, "alice")
        assert alice.responses.retrieve(made.id) == made
        assert alice.responses.create(**ASK, **GREEDY, previous_response_id=made.id).output_text
    with serving(tiny_folder, tmp_path, responses=ResponseStore(path, keep_days=0)) as running:
        free = client_of(running, "none")
        kept = free.responses.create(**ASK, **GREEDY)
        with pytest.raises(openai.NotFoundError):
            free.responses.retrieve(kept.id)
        with pytest.raises(openai.BadRequestError, match="keeps no responses"):
            free.responses.create(**ASK, store=True)
