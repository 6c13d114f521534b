"""Ranking over a real socket: the documented formula, computed again by transformers."""

import math

import httpx
import pytest
import torch
from support.serving import serving

QUERY = "quick fox?"
DOCUMENTS = ["The quick brown fox jumps", "Die Katze sitzt auf der Matte.", "print('hello world')"]


@pytest.fixture(scope="module")
def running(tiny_folder, tmp_path_factory):
    with serving(tiny_folder, tmp_path_factory.mktemp("home")) as server:
        yield server


@pytest.fixture(scope="module")
def oracle(tiny_folder):
    """(query, document) -> mean log-probability of the query's tokens, as docs/serve.md says."""
    from transformers import AutoTokenizer, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    model = LlamaForCausalLM.from_pretrained(tiny_folder).eval()

    def mean(query, document):
        before = tokenizer(f"Passage: {document}\nPlease write a question based on this passage.\nQuestion:"
                           )["input_ids"]
        asked = tokenizer(f" {query}", add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logits = model(torch.tensor([before + asked])).logits[0].double()
        rows = torch.log_softmax(logits, -1)[len(before) - 1:-1]
        return float(rows.gather(1, torch.tensor(asked)[:, None]).mean())

    return mean


def post(running, path, **body):
    return httpx.post(running.url + path, json=body, timeout=60)


def test_documents_are_ranked_by_the_formula(running, oracle):
    answer = post(running, "/v1/rerank", model="tiny", query=QUERY, documents=DOCUMENTS).json()
    expected = {index: math.exp(oracle(QUERY, document)) for index, document in enumerate(DOCUMENTS)}
    order = sorted(expected, key=lambda index: -expected[index])
    assert [one["index"] for one in answer["results"]] == order
    for one in answer["results"]:
        assert one["relevance_score"] == pytest.approx(expected[one["index"]], rel=1e-4)
        assert one["document"] == {"text": DOCUMENTS[one["index"]]}
    assert answer["usage"]["total_tokens"] > 0
    best = post(running, "/rerank", query=QUERY, documents=[{"text": one} for one in DOCUMENTS], top_n=1,
                return_documents=False).json()["results"]
    assert best == [{"index": order[0], "relevance_score": answer["results"][0]["relevance_score"]}]
    tei = post(running, "/rerank", query=QUERY, texts=DOCUMENTS, raw_scores=True, return_text=True).json()
    assert [one["index"] for one in tei] == order and tei[0]["text"] == DOCUMENTS[order[0]]
    assert [math.exp(one["score"]) for one in tei] == [one["relevance_score"] for one in answer["results"]]


def test_pairs_are_scored_as_documents_are_ranked(running, oracle):
    one_to_many = post(running, "/v1/score", model="tiny", text_1=QUERY, text_2=DOCUMENTS).json()
    assert [one["index"] for one in one_to_many["data"]] == [0, 1, 2]
    for one, document in zip(one_to_many["data"], DOCUMENTS, strict=True):
        assert one["score"] == pytest.approx(math.exp(oracle(QUERY, document)), rel=1e-4)
    pairs = post(running, "/score", text_1=[QUERY] * 3, text_2=DOCUMENTS, use_activation=False).json()
    assert [math.exp(one["score"]) for one in pairs["data"]] == [one["score"] for one in one_to_many["data"]]


@pytest.mark.parametrize("path,body,field", [
    ("/score", {"text_1": ["a"] * 2, "text_2": ["a"] * 3}, "text_2"), ("/score", {"text_1": "a"}, "text_2"),
    ("/score", {"text_1": "", "text_2": "a"}, "query"), ("/rerank", {"query": "a"}, "documents"),
    ("/rerank", {"query": "a", "documents": []}, "documents"), ("/rerank", {"documents": ["a"]}, "query"),
    ("/rerank", {"query": "a", "documents": ["a"], "texts": ["a"]}, "documents"),
    ("/rerank", {"query": "a", "documents": ["a"], "return_text": True}, "return_text"),
    ("/rerank", {"query": "a", "texts": ["a"], "top_n": 1}, "top_n"),
    ("/rerank", {"query": "a", "documents": ["a"], "top_n": 0}, "top_n"),
    ("/rerank", {"query": "a", "documents": [{"image": "x"}]}, "documents"),
])
def test_what_is_not_done_is_refused_by_name(running, path, body, field):
    reply = post(running, path, **body)
    assert reply.status_code == 400 and reply.json()["error"]["param"] == field


def test_documents_that_are_too_long_are_refused_or_cut(running):
    body = {"query": QUERY, "documents": ["fox " * 2000, "fox"]}
    assert post(running, "/rerank", **body).json()["error"]["code"] == "context_length_exceeded"
    assert len(post(running, "/rerank", truncate=True, **body).json()["results"]) == 2
    reply = post(running, "/rerank", query="fox " * 2000, documents=["a"], truncate=True)
    assert reply.json()["error"]["code"] == "context_length_exceeded"
    assert post(running, "/rerank", model="none", query="a", documents=["a"]).status_code == 404
    running.wait_idle()
