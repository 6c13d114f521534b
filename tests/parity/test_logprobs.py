"""One log-probability: sampling = scoring = training, on one model.

On the native kernels these are equal bit for bit, whatever the batch a token was drawn in. On plain torch
they agree within 2e-5, as the forward itself does (`test_forward_modes.py`).
"""

import random

import pytest
import torch
from support.tiny import build_llama

from openhearth.engine import Engine, EngineSettings, Request, Sampling
from openhearth.formats import open_checkpoint
from openhearth.kernels import select
from openhearth.kernels.attention.inputs import AttnInput
from openhearth.kernels.logprob import token_logprobs
from openhearth.models import load_model
from openhearth.spec import read_spec


@pytest.fixture(scope="module", ids=["fp32", "fp32_tied", "bf16_tied"],
                params=[(torch.float32, False), (torch.float32, True), (torch.bfloat16, True)])
def models(request, tmp_path_factory):
    """The same weights to serve and to train."""
    dtype, is_tied = request.param
    folder = tmp_path_factory.mktemp("logprobs")
    build_llama(folder, with_tokenizer=False, num_attention_heads=6, num_key_value_heads=2, hidden_size=96,
                tie_word_embeddings=is_tied)
    checkpoint = open_checkpoint(folder)
    spec = read_spec(checkpoint)
    return [load_model(checkpoint, spec, dtype=dtype, is_trainable=is_trainable)
            for is_trainable in (False, True)]


def assert_same(found, want, dtype):
    if select.chosen().is_native:
        assert list(found) == list(want)
    else:
        assert list(found) == pytest.approx(list(want), abs=2e-5 if dtype == torch.float32 else 0.1)


@pytest.mark.parametrize("temperature", [0.0, 1.0, 0.7])
def test_sampled_scored_and_trained_logprobs_are_the_same(models, temperature):
    serving, learning = models
    rng = random.Random(7)
    engine = Engine(serving, weights_version="w", settings=EngineSettings(page_size=4, max_batch_tokens=37))
    requests = [Request(tuple(rng.randrange(512) for _ in range(rng.randrange(1, 40))), n=2,
                        sampling=Sampling(temperature=temperature, seed=seed, max_tokens=12))
                for seed in range(6)]
    for request, completions in zip(requests, engine.generate(requests), strict=True):
        for one in completions:
            token_ids = (*request.prompt_token_ids, *one.token_ids)
            if temperature in (0.0, 1.0):
                scores = engine.score(token_ids)[-len(one.token_ids):]
                assert_same(scores, one.logprobs, serving.dtype)
            tokens_T = torch.tensor(token_ids)
            hidden_TD = learning.forward(tokens_T, torch.arange(len(tokens_T)),
                                         AttnInput.without_cache((len(tokens_T),)))
            trained_T = token_logprobs(hidden_TD[:-1], learning.logits, tokens_T[1:], temperature or 1.0)
            assert trained_T.requires_grad
            assert_same(trained_T[-len(one.token_ids):].tolist(), one.logprobs, serving.dtype)


def test_training_through_chunks_gives_the_gradients_of_the_whole(models):
    learning = models[1]
    tokens_T = torch.tensor([random.Random(3).randrange(512) for _ in range(90)])

    def gradients(logprobs_of):
        learning.zero_grad()
        hidden_TD = learning.forward(tokens_T, torch.arange(90), AttnInput.without_cache((90,)))
        logprobs_of(hidden_TD[:-1]).mean().backward()
        return {name: parameter.grad.float() for name, parameter in learning.named_parameters()}

    chunked = gradients(lambda hidden: token_logprobs(hidden, learning.logits, tokens_T[1:], 0.8))
    whole = gradients(lambda hidden: (learning.logits(hidden) / 0.8).log_softmax(-1).gather(
        1, tokens_T[1:, None]))
    tolerance = 1e-4 if learning.dtype == torch.float32 else 0.03
    largest = max(want.norm() for want in whole.values())  # next to it, some are rounding alone
    for name, want in whole.items():
        assert (chunked[name] - want).norm() <= tolerance * (want.norm() + largest / 100), name
