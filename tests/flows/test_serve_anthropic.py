"""Anthropic's dialect by the official client, over a real socket."""

import asyncio
import json

import anthropic
import httpx
import openai
import pytest
from support.serving import serving

USER = [{"role": "user", "content": "the quick brown fox"}]
# This version of the client has no sampling settings of its own any more; earlier ones sent them as fields.
GREEDY = {"model": "tiny", "max_tokens": 12, "extra_body": {"temperature": 0}}


@pytest.fixture(scope="module")
def running(tiny_folder, tmp_path_factory):
    with serving(tiny_folder, tmp_path_factory.mktemp("home")) as server:
        yield server


@pytest.fixture(scope="module")
def client(running):
    return anthropic.Anthropic(base_url=running.url, api_key="none", max_retries=0)


def greedy_text(running, messages, count=12):
    """What the other dialect, which is compared with transformers, answers."""
    same = openai.OpenAI(base_url=f"{running.url}/v1", api_key="none")
    answer = same.chat.completions.create(model="tiny", messages=messages, temperature=0, max_tokens=count)
    return answer.choices[0].message.content, answer.usage


def test_a_message_is_the_answer_of_the_other_dialect(running, client):
    system = [{"type": "text", "text": "be brief", "cache_control": {"type": "ephemeral"}}]
    answer = client.messages.create(**GREEDY, messages=USER, system=system)
    text, usage = greedy_text(running, [{"role": "system", "content": "be brief"}, *USER])
    assert [(block.type, block.text) for block in answer.content] == [("text", text)]
    assert (answer.stop_reason, answer.stop_sequence, answer.role) == ("max_tokens", None, "assistant")
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (usage.prompt_tokens, 12)
    counted = client.messages.count_tokens(model="tiny", messages=USER, system="be brief")
    assert counted.input_tokens == usage.prompt_tokens


def test_a_stream_is_the_message_in_pieces(client):
    whole = client.messages.create(**GREEDY, messages=USER)
    with client.messages.stream(**GREEDY, messages=USER) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == final.content[0].text == whole.content[0].text
    assert (final.stop_reason, final.usage.output_tokens) == (whole.stop_reason, whole.usage.output_tokens)
    kinds = [event.type for event in client.messages.create(**GREEDY, messages=USER, stream=True)]
    inner = kinds[2:-3]
    assert kinds[:2] == ["message_start", "content_block_start"] and set(inner) == {"content_block_delta"}
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]


def test_every_event_has_a_name_that_its_data_repeats(running):
    body = {"model": "tiny", "max_tokens": 12, "messages": USER, "stream": True}
    events = httpx.post(running.url + "/v1/messages", json=body).text.strip().split("\n\n")
    for event in events:
        name, data = event.split("\n")
        assert json.loads(data.removeprefix("data: "))["type"] == name.removeprefix("event: ")


def test_stop_sequences_and_the_end_of_the_context(client):
    whole = client.messages.create(**GREEDY, messages=USER).content[0].text
    cut = client.messages.create(**GREEDY, messages=USER, stop_sequences=["\u0000", whole[4:6]])
    assert (cut.stop_reason, cut.stop_sequence) == ("stop_sequence", whole[4:6])
    assert cut.content[0].text == whole[:whole.index(whole[4:6])]
    full = client.messages.create(model="tiny", max_tokens=5000, messages=USER)
    if full.usage.input_tokens + full.usage.output_tokens == 512:
        assert full.stop_reason == "model_context_window_exceeded"
    else:
        assert full.stop_reason == "end_turn"


def test_a_last_message_of_the_assistant_is_continued(client):
    whole = client.messages.create(**GREEDY, messages=USER).content[0].text
    continued = client.messages.count_tokens(
        model="tiny", messages=[*USER, {"role": "assistant", "content": whole[:3]}])
    alone = client.messages.count_tokens(model="tiny", messages=USER)
    assert 1 <= continued.input_tokens - alone.input_tokens <= 9
    with pytest.raises(anthropic.BadRequestError, match="white space"):
        client.messages.create(**GREEDY, messages=[*USER, {"role": "assistant", "content": "a "}])


def test_the_asynchronous_client(running):
    async def ask():
        async with anthropic.AsyncAnthropic(base_url=running.url, auth_token="none", api_key=None) as many:
            async with many.messages.stream(**GREEDY, messages=USER) as stream:
                streamed = "".join([text async for text in stream.text_stream])
            answers = await asyncio.gather(*(many.messages.create(**GREEDY, messages=USER) for _ in range(4)))
            return streamed, {answer.content[0].text for answer in answers}

    streamed, texts = asyncio.run(ask())
    assert texts == {streamed}
    running.wait_idle()


@pytest.mark.parametrize("settings,name", [
    ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type"),
    ({"tool_choice": {"type": "any"}}, "tool_choice"),
    ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking"),
    ({"service_tier": "priority"}, "service_tier"), ({"extra_body": {"unheard_of": 1}}, "unheard_of"),
    ({"extra_body": {"temperature": 1.5}}, "temperature"), ({"extra_body": {"top_k": -1}}, "top_k"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
     "messages[0].content[0]"),
    ({"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "x"}]}]},
     "messages[0].content[0].tool_use_id"),
])
def test_what_is_not_done_is_refused_by_name(client, settings, name):
    with pytest.raises(anthropic.BadRequestError) as caught:
        client.messages.create(**{**GREEDY, "messages": USER, **settings})
    assert name in caught.value.body["error"]["message"]
    assert caught.value.body["error"]["type"] == "invalid_request_error"
    assert caught.value.body["request_id"] == caught.value.request_id


def test_values_that_ask_for_nothing_and_unknown_headers_are_taken(client):
    answer = client.messages.create(**GREEDY, messages=USER, tools=[], thinking={"type": "disabled"},
                                    metadata={"user_id": "u"}, extra_headers={"anthropic-beta": "some-beta"})
    assert answer.usage.output_tokens == 12


def test_a_model_that_is_not_there(client):
    with pytest.raises(anthropic.NotFoundError) as caught:
        client.messages.create(**{**GREEDY, "model": "none"}, messages=USER)
    assert caught.value.body["error"]["type"] == "not_found_error"
