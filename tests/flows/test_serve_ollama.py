"""Ollama's dialect by the official client, over a real socket."""

import asyncio

import httpx
import ollama
import openai
import pytest
from support.serving import serving

USER = [{"role": "user", "content": "the quick brown fox"}]
GREEDY = {"temperature": 0, "num_predict": 12}


@pytest.fixture(scope="module")
def running(tiny_folder, tmp_path_factory):
    with serving(tiny_folder, tmp_path_factory.mktemp("home")) as server:
        yield server


@pytest.fixture(scope="module")
def client(running):
    return ollama.Client(running.url)


def greedy(running, messages):
    """What the other dialect, which is compared with transformers, answers."""
    same = openai.OpenAI(base_url=f"{running.url}/v1", api_key="none")
    answer = same.chat.completions.create(model="tiny", messages=messages, temperature=0, max_tokens=12,
                                          logprobs=True)
    return answer.choices[0], answer.usage


def test_chat_is_the_answer_of_the_other_dialect(running, client):
    answer = client.chat("tiny", messages=USER, options=GREEDY, logprobs=True, top_logprobs=2)
    choice, usage = greedy(running, USER)
    assert (answer.message.role, answer.message.content) == ("assistant", choice.message.content)
    assert (answer.done, answer.done_reason) == (True, "length")
    assert (answer.prompt_eval_count, answer.eval_count) == (usage.prompt_tokens, 12)
    expected = [token.logprob for token in choice.logprobs.content]
    assert [token.logprob for token in answer.logprobs] == expected
    assert answer.total_duration >= answer.eval_duration > 0


def test_a_stream_is_the_answer_in_pieces(client):
    whole = client.chat("tiny", messages=USER, options={"seed": 4, "num_predict": 40})
    *pieces, last = client.chat("tiny", messages=USER, options={"seed": 4, "num_predict": 40}, stream=True)
    assert "".join(piece.message.content for piece in pieces) == whole.message.content
    assert not any(piece.done for piece in pieces)
    assert (last.done, last.done_reason, last.eval_count) == (True, whole.done_reason, whole.eval_count)


def test_generate_with_a_system_message_and_raw(running, client):
    answer = client.generate("tiny:latest", "the quick brown fox", system="be brief", options=GREEDY)
    choice, usage = greedy(running, [{"role": "system", "content": "be brief"}, *USER])
    assert (answer.response, answer.prompt_eval_count) == (choice.message.content, usage.prompt_tokens)
    raw = client.generate("tiny", "The lazy", raw=True, options=GREEDY)
    same = openai.OpenAI(base_url=f"{running.url}/v1", api_key="none")
    plain = same.completions.create(model="tiny", prompt="The lazy", temperature=0, max_tokens=12)
    assert raw.response == plain.choices[0].text
    pieces = client.generate("tiny", "The lazy", raw=True, options=GREEDY, stream=True)
    assert "".join(piece.response for piece in pieces) == raw.response


def test_nothing_to_say_loads_the_model(client):
    assert client.generate("tiny", keep_alive="5m").done_reason == "load"
    assert client.chat("tiny", messages=[], keep_alive=-1).done_reason == "load"


def test_the_asynchronous_client(running):
    async def ask():
        many = ollama.AsyncClient(running.url)
        answers = await asyncio.gather(*(many.chat("tiny", messages=USER, options=GREEDY) for _ in range(4)))
        pieces = [piece.message.content async for piece in
                  await many.chat("tiny", messages=USER, options=GREEDY, stream=True)]
        return {answer.message.content for answer in answers}, "".join(pieces)

    texts, streamed = asyncio.run(ask())
    assert texts == {streamed}
    running.wait_idle()


def test_what_clients_ask_about_models(running, client):
    [model] = client.list().models
    assert (model.model, model.details.family, model.details.format) == ("tiny", "llama", "safetensors")
    assert model.size == running.served.model.stored.num_bytes and len(model.digest) == 64
    [loaded] = client.ps().models
    assert (loaded.name, loaded.context_length, loaded.digest) == ("tiny", 512, model.digest)
    shown = client.show("tiny")
    assert shown.capabilities == ["completion", "tools"] and "im_start" in shown.template
    assert shown.modelinfo["llama.context_length"] == 512
    version = httpx.get(running.url + "/api/version").json()["version"]
    assert tuple(map(int, version.split("."))) >= (0, 12, 11)  # clients compare its parts as numbers


@pytest.mark.parametrize("settings,name", [
    ({"tools": [{"type": "function", "function": {"name": "f g"}}]}, "tools[0].function.name"),
    ({"format": {"not": {}}}, "format"), ({"think": True}, "think"),
    ({"keep_alive": "5 minutes"}, "keep_alive"),
    ({"keep_alive": "soon"}, "keep_alive"), ({"options": {"num_ctx": 512.5}}, "options.num_ctx"),
    ({"options": {"mirostat": 1}}, "options.mirostat"), ({"options": {"num_gpu": 1}}, "options.num_gpu"),
    ({"options": {"temperature": -1}}, "options.temperature"),
    ({"options": {"unheard": 1}}, "options.unheard"),
    ({"messages": [{"role": "user", "content": "x", "images": ["aGVsbG8="]}]}, "messages[0].images"),
])
def test_what_is_not_done_is_refused_by_name(client, settings, name):
    with pytest.raises(ollama.ResponseError) as caught:
        client.chat(**{"model": "tiny", "messages": USER, **settings})
    assert caught.value.status_code == 400 and f"`{name}`" in caught.value.error


@pytest.mark.parametrize("num_ctx,keep_alive", [(512, "-1s"), (8192.0, "-1.0s"), (131072.0, "3600.0s")])
def test_values_that_home_assistants_send_are_taken(client, num_ctx, keep_alive):
    """Its form (2026.2) gives numbers with a point, and proposes a context of 8192 for every model."""
    answer = client.chat("tiny", messages=USER, think=False, keep_alive=keep_alive, tools=[], format="",
                         options={"num_ctx": num_ctx, "num_predict": 3, "mirostat": 0, "temperature": 0})
    assert answer.eval_count == 3


def test_what_home_assistants_send_after_a_tool_was_called(client):
    """Its `Message`s of a call and of its result name neither an id nor, in the result, the tool."""
    call = ollama.Message.ToolCall(function=ollama.Message.ToolCall.Function(name="f", arguments={"a": 1}))
    answer = client.chat("tiny", messages=[
        *USER, ollama.Message(role="assistant", content=None, tool_calls=[call]),
        ollama.Message(role="tool", content='{"success":true}')],
        options={"num_ctx": 8192.0, "num_predict": 3})
    assert answer.eval_count == 3


def test_a_prompt_beyond_the_context_is_refused_whatever_is_asked_for(client):
    with pytest.raises(ollama.ResponseError) as caught:
        client.chat("tiny", messages=[{"role": "user", "content": "word " * 2000}],
                    options={"num_ctx": 8192.0})
    assert caught.value.status_code == 400 and "512" in caught.value.error


def test_a_model_that_is_not_there(client):
    with pytest.raises(ollama.ResponseError) as caught:
        client.chat("none", messages=USER)
    assert caught.value.status_code == 404
