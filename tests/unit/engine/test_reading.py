"""Prompts that are read: means and scores that depend on the prompt alone, beside sequences that decode."""

import random

import pytest
import torch
from support.decoder import Decoder, tiny_spec

from openhearth.engine import Engine, EngineSettings, Request, Sampling
from openhearth.engine.memory import page_bytes
from openhearth.engine.reading import MeanPool, PromptScores
from openhearth.errors import HearthError, PromptTooLong, UsageError
from openhearth.formats import open_checkpoint
from openhearth.kernels import select
from openhearth.kernels.attention.inputs import AttnInput
from openhearth.models import load_model
from openhearth.spec import read_spec

V, LONG = 97, Sampling(seed=1, max_tokens=30)


def engine_of(model, *, num_pages=None, page_size=4, **kinds):
    if num_pages is not None:
        kinds["cache_bytes"] = num_pages * page_bytes(model.spec, page_size, model.dtype)
    return Engine(model, weights_version="w", settings=EngineSettings(page_size=page_size, **kinds))


def read(engine, prompts, beside=()):
    """Have prompts pooled and scored in one engine, among other requests; returns means and scores."""
    pools = [MeanPool() for _ in prompts]
    scores = [PromptScores(prompt) for prompt in prompts]
    requests = [Request(prompt, reader=reader) for readers in (pools, scores)
                for prompt, reader in zip(prompts, readers, strict=True)] + list(beside)
    random.Random(len(beside)).shuffle(requests)
    found = engine.generate(requests)
    for request, completions in zip(requests, found, strict=True):
        assert (completions[0].token_ids == ()) == (request.reader is not None)
    engine.pages.check()
    assert engine.stats().num_used_pages == 0 and not engine.has_work
    return [pool.mean() for pool in pools], [one.logprobs for one in scores]


PROMPTS = [tuple(random.Random(seed).randrange(V) for _ in range(count))
           for seed, count in enumerate((1, 2, 17, 40, 40, 33))]


def test_a_mean_is_that_of_the_forward_and_scores_are_the_engines():
    model = Decoder(tiny_spec(max_position=48))
    means, scores = read(engine_of(model, max_batch_tokens=7), PROMPTS)
    for prompt, mean, score in zip(PROMPTS, means, scores, strict=True):
        hidden_TD = model.forward(torch.tensor(prompt), torch.arange(len(prompt)),
                                  AttnInput.without_cache((len(prompt),), torch.float32))
        expected = hidden_TD.double().mean(0)
        torch.testing.assert_close(torch.tensor(mean).double(), expected, atol=1e-5, rtol=1e-5)
        assert score == pytest.approx(engine_of(model).score(prompt), abs=1e-5)


@pytest.fixture(scope="module")
def llama(tiny_folder):
    checkpoint = open_checkpoint(tiny_folder)
    return load_model(checkpoint, read_spec(checkpoint), dtype=torch.bfloat16)


@pytest.mark.parametrize("kinds", [
    {"max_batch_tokens": 3}, {"max_batch_tokens": 16, "max_num_sequences": 3}, {"page_size": 1},
    {"num_pages": 150, "max_batch_tokens": 40}, {"has_prefix_cache": False},
])
def test_neighbours_chunks_and_preemption_change_no_bit(llama, kinds):
    if not select.covers(torch.bfloat16, torch.device("cpu")):
        pytest.skip("the native kernels do not run here")
    alone = [read(engine_of(llama), [prompt]) for prompt in PROMPTS]
    beside = [Request(prompt, LONG, n=2) for prompt in PROMPTS[2:]]
    engine = engine_of(llama, **kinds)
    means, scores = read(engine, PROMPTS, beside)
    assert [([mean], [score]) for mean, score in zip(means, scores, strict=True)] == alone
    assert read(engine, PROMPTS, beside) == (means, scores), "what is cached changes nothing"
    assert [engine_of(llama).score(prompt) for prompt in PROMPTS] == [score for _, [score] in alone]


def test_a_continuation_is_scored_without_its_beginning():
    engine = engine_of(Decoder(tiny_spec(max_position=48)))
    prompt = PROMPTS[3]
    whole, part = PromptScores(prompt), PromptScores(prompt, first=30)
    engine.generate([Request(prompt, reader=whole), Request(prompt, reader=part)])
    assert part.logprobs == pytest.approx(whole.logprobs[29:], abs=1e-5) and len(part.logprobs) == 10


def test_what_was_likeliest_in_each_place_agrees_with_the_scores():
    engine = engine_of(Decoder(tiny_spec(max_position=48)), max_batch_tokens=7)
    prompt = PROMPTS[3]
    every, two = PromptScores(prompt, num_top=V), PromptScores(prompt, num_top=2)
    engine.generate([Request(prompt, reader=every), Request(prompt, reader=two)])
    assert len(every.top) == len(every.logprobs) == len(prompt) - 1
    for token_id, score, pairs in zip(prompt[1:], every.logprobs, every.top, strict=True):
        assert dict(pairs)[token_id] == pytest.approx(score, abs=1e-5)
        assert [logprob for _, logprob in pairs] == sorted((logprob for _, logprob in pairs), reverse=True)
    for most, few in zip(every.top, two.top, strict=True):
        assert [token_id for token_id, _ in few] == [token_id for token_id, _ in most[:2]]


def test_a_prompt_that_is_only_read_may_fill_the_context():
    engine = engine_of(Decoder(tiny_spec(max_position=48)), max_batch_tokens=7)
    whole = tuple(random.Random(9).randrange(V) for _ in range(48))
    _, [scores] = read(engine, [whole])
    assert scores == pytest.approx(engine.score(whole), abs=1e-5) and len(scores) == 47
    with pytest.raises(PromptTooLong, match="49 tokens, the context 48"):
        engine.submit(Request((*whole, 1), reader=MeanPool()))
    with pytest.raises(PromptTooLong, match="48 tokens, the context 48"):
        engine.submit(Request(whole, Sampling(max_tokens=1)))


def test_a_reader_that_cannot_go_on_ends_its_request_alone():
    model = Decoder(tiny_spec(max_position=48))

    class Refusing:
        def read(self, start, hidden_TD, logits):
            raise HearthError("no")

    engine = engine_of(model, max_batch_tokens=8)
    bad = engine.submit(Request(PROMPTS[3], reader=Refusing()))
    good = engine.submit(Request(PROMPTS[2], Sampling(max_tokens=3)))
    events = []
    while engine.has_work:
        events += engine.step()
    assert [event.error.what for event in events if event.request_id == bad] == ["no"]
    assert len([event for event in events if event.request_id == good]) == 3
    with pytest.raises(HearthError, match="nan"):
        MeanPool().read(0, torch.tensor([[1.0, float("nan")]]), model.logits)
    with pytest.raises(UsageError):
        Request((1, 2), n=2, reader=MeanPool())
