"""With every cache type chunks give the bits of the whole, and a batch those of one request alone."""

import random

import pytest
import torch
from support.packs import PagedRunner, run_whole
from support.tiny import build_llama

from openhearth.engine import Engine, EngineSettings, Request, Sampling
from openhearth.errors import UsageError
from openhearth.formats import open_checkpoint
from openhearth.kernels import select
from openhearth.models import load_model
from openhearth.spec import read_spec

TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def model(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache_types")
    build_llama(folder, with_tokenizer=False, num_attention_heads=6, num_key_value_heads=2, hidden_size=192)
    checkpoint = open_checkpoint(folder)
    return load_model(checkpoint, read_spec(checkpoint), dtype=request.param)


def assert_same(model, got, want):
    if select.chosen().is_native:
        assert torch.equal(got, want)
    else:
        assert (got - want).abs().max() <= (0.1 if model.dtype == torch.bfloat16 else 1e-4) * want.abs().max()


@pytest.mark.parametrize("kv_dtype", TYPES.values(), ids=str)
@pytest.mark.parametrize("chunk", [90, 64, 13, 1])
def test_chunks_of_any_size_equal_the_whole_without_a_cache(model, chunk, kv_dtype):
    ids = [random.Random(1).randrange(512) for _ in range(90)]
    runner = PagedRunner(model, kv_dtype=kv_dtype)
    with torch.no_grad():
        whole = run_whole(model, ids, kv_dtype)
    found = torch.cat([runner.step({0: ids[i:i + chunk]})[0] for i in range(0, len(ids), chunk)])
    assert_same(model, model.logits(found), model.logits(whole))


def requests_of(seed):
    rng = random.Random(seed)
    stem = [rng.randrange(512) for _ in range(40)]
    requests = []
    for _ in range(7):
        own = [rng.randrange(512) for _ in range(rng.randrange(1, 9))]
        sampling = Sampling(seed=rng.randrange(2**60), max_tokens=rng.randrange(2, 14), temperature=0.8)
        requests.append(Request(tuple(stem[:rng.choice([0, 16, 33])] + own), sampling))
    return requests


def engine_of(model, **settings):
    return Engine(model, weights_version="w", settings=EngineSettings(**settings))


@pytest.mark.parametrize("cache_dtype", TYPES)
@pytest.mark.parametrize("seed", range(2))
def test_a_request_in_a_batch_answers_as_alone(model, cache_dtype, seed):
    requests = requests_of(seed)
    kinds = {"cache_dtype": cache_dtype, "cache_bytes": 10**6}
    alone = [engine_of(model, **kinds, has_prefix_cache=False).generate([one])[0][0] for one in requests]
    for settings in ({"max_batch_tokens": 5}, {"page_size": 4}, {"max_num_sequences": 3, "page_size": 32}):
        batch = engine_of(model, **kinds, **settings).generate(requests)
        for (found,), want in zip(batch, alone, strict=True):
            if select.chosen().is_native:
                assert (found.token_ids, found.logprobs) == (want.token_ids, want.logprobs)
            else:  # its rounding depends on the pack and may decide a later draw
                assert abs(found.logprobs[0] - want.logprobs[0]) < 0.3


def test_int8_stays_near_the_exact_cache_and_takes_about_half_of_bfloat16(model):
    ids = [random.Random(2).randrange(512) for _ in range(90)]
    with torch.no_grad():
        exact, rounded = (model.logits(run_whole(model, ids, TYPES[name])) for name in ("float32", "int8"))
    assert 0 < (exact - rounded).abs().max() < 0.05 * exact.abs().max()
    pages = {name: engine_of(model, cache_dtype=name, cache_bytes=10**6).stats().num_pages for name in TYPES}
    assert pages["int8"] > 1.85 * pages["bfloat16"] and pages["bfloat16"] >= 2 * pages["float32"]


def test_an_unknown_cache_type_is_refused():
    with pytest.raises(UsageError, match="`int4`"):
        EngineSettings(cache_dtype="int4")
