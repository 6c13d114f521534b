"""An engine whose model learns: weights that changed are taken over, or refused."""

import pytest
import torch
from support.tiny import build_llama

from openhearth.engine import Engine, EngineSettings, Request, Sampling
from openhearth.errors import UsageError
from openhearth.formats import open_checkpoint
from openhearth.models import load_model
from openhearth.spec import read_spec

ASK = Request(tuple(range(3, 30)), Sampling(max_tokens=6))


@pytest.fixture
def model(tmp_path):
    build_llama(tmp_path, with_tokenizer=False)
    checkpoint = open_checkpoint(tmp_path)
    return load_model(checkpoint, read_spec(checkpoint), dtype=torch.float32, is_trainable=True)


def engine_of(model):
    return Engine(model, weights_version="0", settings=EngineSettings(page_size=8))


def change(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)


def test_a_renewed_engine_answers_like_a_new_one_and_forgets_old_pages(model):
    engine = engine_of(model)
    before = engine.generate([ASK])[0][0]
    assert engine.stats().num_cached_pages > 0
    change(model)
    engine.renew("1")
    assert engine.stats().num_cached_pages == 0
    after, fresh = engine.generate([ASK])[0][0], engine_of(model).generate([ASK])[0][0]
    assert (after.token_ids, after.logprobs) == (fresh.token_ids, fresh.logprobs)
    assert after.logprobs != before.logprobs and after.weights_version == "1" and after.cached_tokens == 0
    again = engine.generate([ASK])[0][0]
    assert again.cached_tokens > 0 and again.logprobs == after.logprobs


def test_changed_weights_are_refused_until_they_are_renewed(model):
    engine = engine_of(model)
    change(model)
    with pytest.raises(UsageError, match="weights changed"):
        engine.submit(ASK)
    engine.renew("1")
    engine.submit(ASK)
    with pytest.raises(UsageError, match="under 1 open requests"):
        engine.renew("2")
