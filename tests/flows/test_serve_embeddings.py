"""Embeddings by the official clients, over a real socket."""

import asyncio
import math
import threading

import httpx
import ollama
import openai
import pytest
import torch
from support.serving import serving

TEXTS = ["the quick brown fox", "a", "Die Katze sitzt auf der Matte. " * 8, "\u732b\u304c"]


@pytest.fixture(scope="module")
def running(tiny_folder, tmp_path_factory):
    with serving(tiny_folder, tmp_path_factory.mktemp("home")) as server:
        yield server


@pytest.fixture(scope="module")
def client(running):
    return openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def oracle(tiny_folder):
    """text -> (token ids, mean of the last hidden states) by transformers."""
    from transformers import AutoTokenizer, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    model = LlamaForCausalLM.from_pretrained(tiny_folder).eval()

    def embed(text):
        token_ids = tokenizer(text, add_special_tokens=True)["input_ids"]
        with torch.no_grad():
            hidden = model.model(torch.tensor([token_ids])).last_hidden_state[0]
        return token_ids, hidden.double().mean(0)

    return embed


def unit(vector):
    return (vector / vector.norm()).tolist()


def test_vectors_are_those_of_transformers_by_text_and_by_token_ids(client, oracle):
    answer = client.embeddings.create(model="tiny", input=TEXTS)
    token_ids, means = zip(*map(oracle, TEXTS), strict=True)
    assert [one.index for one in answer.data] == [0, 1, 2, 3] and answer.model == "tiny"
    for found, mean in zip(answer.data, means, strict=True):
        torch.testing.assert_close(found.embedding, unit(mean), atol=1e-5, rtol=1e-4)
        assert math.hypot(*found.embedding) == pytest.approx(1, abs=1e-6)
    count = sum(map(len, token_ids))
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (count, count)
    assert client.embeddings.create(model="tiny", input=list(token_ids)).data == answer.data
    assert client.embeddings.create(model="tiny", input=token_ids[0]).data == answer.data[:1]


def test_floats_base64_and_fewer_dimensions(client, oracle):
    packed = client.embeddings.create(model="tiny", input=TEXTS[0]).data[0].embedding
    plain = client.embeddings.create(model="tiny", input=TEXTS[0], encoding_format="float").data[0].embedding
    assert packed == [torch.tensor(number, dtype=torch.float32).item() for number in plain]
    short = client.embeddings.create(model="tiny", input=TEXTS[0], dimensions=8, encoding_format="float")
    torch.testing.assert_close(short.data[0].embedding, unit(oracle(TEXTS[0])[1][:8]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("settings,field", [
    ({"input": []}, "input"), ({"input": [[]]}, "input"), ({"input": [1, "a"]}, "input"),
    ({"input": 3}, "input"), ({"input": ["a"] * 2049}, "input"), ({"dimensions": 65}, "dimensions"),
    ({"dimensions": 0}, "dimensions"), ({"encoding_format": "int8"}, "encoding_format"),
    ({"extra_body": {"pooling": "cls"}}, "pooling"),
])
def test_what_is_not_done_is_refused_by_name(client, settings, field):
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(**{"model": "tiny", "input": "a", "encoding_format": "float", **settings})
    assert caught.value.param == field


@pytest.mark.parametrize("wrong", [[512], [-1], [10**30], "x" * 3000])
def test_what_the_model_cannot_read_is_refused(client, running, wrong):
    with pytest.raises(openai.BadRequestError):
        client.embeddings.create(model="tiny", input=wrong)
    running.wait_idle()


def test_the_same_bits_alone_and_beside_answers_that_go_on(running):
    def embed(texts):
        reply = httpx.post(running.url + "/v1/embeddings", json={"model": "tiny", "input": texts}, timeout=60)
        return [one["embedding"] for one in reply.json()["data"]]

    def chat(seed):
        body = {"model": "tiny", "seed": seed, "max_tokens": 300, "logit_bias": {"2": -100},
                "messages": [{"role": "user", "content": "hello"}]}
        assert httpx.post(running.url + "/v1/chat/completions", json=body, timeout=120).status_code == 200

    alone = [embed([text])[0] for text in TEXTS]
    neighbours = [threading.Thread(target=chat, args=(seed,)) for seed in range(6)]
    for neighbour in neighbours:
        neighbour.start()
    before, during = running.engine.stats().num_drawn_tokens, []
    for _ in range(3):
        assert embed(TEXTS * 9) == alone * 9
        during.append(running.engine.stats().num_drawn_tokens)
    for neighbour in neighbours:
        neighbour.join()
    assert before < during[0] < during[-1], "answers went on meanwhile"
    running.wait_idle()


def test_a_client_that_leaves_frees_its_pages(running):
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(running.url + "/v1/embeddings", timeout=httpx.Timeout(20, read=0.1),
                   json={"model": "tiny", "input": ["fox " * 300] * 2000})
    running.wait_idle()


def test_ollamas_client_sync_and_async(running, client, oracle):
    expected = [one.embedding for one in client.embeddings.create(
        model="tiny", input=TEXTS[:2], encoding_format="float").data]
    local = ollama.Client(running.url)
    answer = local.embed("tiny:latest", TEXTS[:2], options={"temperature": 0}, keep_alive="5m")
    assert [list(vector) for vector in answer.embeddings] == expected
    assert answer.prompt_eval_count == sum(len(oracle(text)[0]) for text in TEXTS[:2])
    assert asyncio.run(ollama.AsyncClient(running.url).embed("tiny", TEXTS[0])).embeddings[0] == expected[0]
    assert list(local.embeddings("tiny", TEXTS[0]).embedding) == expected[0]
    assert len(local.embed("tiny", TEXTS[0], dimensions=5).embeddings[0]) == 5
    assert local.embed("tiny", "fox " * 2000).prompt_eval_count == 511
    with pytest.raises(ollama.ResponseError, match="truncate"):
        local.embed("tiny", "fox " * 2000, truncate=False)
    assert local.embed("tiny", []).embeddings == []
