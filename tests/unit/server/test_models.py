"""Several models in one server: who is loaded, who is unloaded, who waits; adapters that come and go."""

import asyncio
import gc
import os
import threading
import time
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import torch
from support.mtp import build_mtp
from support.serving import load_tiny, offer_tiny
from support.tiny import build_llama

from openhearth import hardware
from openhearth.engine import Request, Sampling
from openhearth.engine.memory import page_bytes
from openhearth.errors import BadFile, NotEnoughMemory, UsageError
from openhearth.models.adapter_files import read_adapter, write_adapter
from openhearth.models.lora import AdapterWeights
from openhearth.server import Limits, Models, assign_adapters, plan_models
from openhearth.server.errors import Refusal
from openhearth.server.planning import SHARED_TOKENS, _divide

REQUEST = Request((5, 6, 7), Sampling(seed=1, max_tokens=20))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("several")
    for seed, name in enumerate(("a", "b", "c")):
        build_llama(folder / name, seed=seed, **({"hidden_size": 32} if name == "c" else {}))
    return {name: folder / name for name in ("a", "b", "c")}


def make_adapter(folder, *, width=64, seed=0, base=""):
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    pair = torch.randn(4, width), torch.randn(width, 4)
    write_adapter(folder, AdapterWeights({"model.layers.0.self_attn.q_proj": pair}, 2.0), rank=4, alpha=8,
                  is_rank_stabilised=False, base_model="tiny", base_weights_sha256=base)
    return read_adapter(folder)


@asynccontextmanager
async def offering(folders, home, *, num_fitting=3, adapters=None):
    """Models of which so many fit into memory at a time."""
    offers = offer_tiny(folders, home, adapters=adapters)
    sizes = sorted((offer.plan.num_bytes for offer in offers), reverse=True)
    models = Models(offers, memory_bytes=sum(sizes[:num_fitting]))
    models.start()
    try:
        yield models
    finally:
        await models.stop()


def loaded(models):
    return [offer.name for offer in models.offers if offer.state == "loaded"]


async def answer(served, adapter=None):
    """Token ids that a loaded model draws."""
    ticket = await served.thread.submit(Request(REQUEST.prompt_token_ids, REQUEST.sampling, adapter=adapter))
    tokens = []
    while not tokens or tokens[-1].finish_reason is None:
        tokens.append(await ticket.events.get())
    served.thread.close(ticket)
    return tuple(event.token_id for event in tokens), tuple(event.logprob for event in tokens)


async def ask(models, name):
    async with AsyncExitStack() as stack:
        served = await models.lease(name, stack)
        return await answer(served, served.adapter_of(name))


async def until(condition):
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


def test_models_are_loaded_when_they_are_asked_for_and_answer_as_alone(folders, tmp_path):
    alone = {}
    for name, folder in folders.items():
        done = load_tiny(folder, tmp_path).engine.generate([REQUEST])[0][0]
        alone[name] = done.token_ids, done.logprobs

    async def work():
        async with offering(folders, tmp_path) as models:
            assert loaded(models) == []
            found = await asyncio.gather(*(ask(models, name) for name in ("a", "b:latest", "c", "a")))
            assert loaded(models) == ["a", "b", "c"]
            return found

    assert asyncio.run(work()) == [alone["a"], alone["b"], alone["c"], alone["a"]]


def test_the_longest_unused_model_goes_when_memory_is_short_and_comes_back_the_same(folders, tmp_path):
    async def work():
        async with offering(folders, tmp_path, num_fitting=2) as models:
            first = await ask(models, "a")
            await ask(models, "b")
            await ask(models, "a")
            assert loaded(models) == ["a", "b"]
            await ask(models, "c")
            assert loaded(models) == ["a", "c"], "b was unused for longest"
            assert models.held_bytes <= models.memory_bytes
            await ask(models, "b")
            assert loaded(models) == ["b", "c"]
            assert await ask(models, "a") == first

    asyncio.run(work())


def test_a_model_in_use_is_never_unloaded_and_others_wait_or_are_told(folders, tmp_path):
    async def work():
        async with offering(folders, tmp_path, num_fitting=1) as models:
            async with AsyncExitStack() as stack:
                await models.lease("a", stack)
                models.limits = Limits(load_s=0.3)
                with pytest.raises(Refusal, match="`b` was not loaded after") as caught:
                    await ask(models, "b")
                assert caught.value.status == 503 and "others use a" in caught.value.why
                assert loaded(models) == ["a"]
                models.limits = Limits()
                waiting = asyncio.ensure_future(ask(models, "b"))
                await asyncio.sleep(0.05)
                assert loaded(models) == ["a"] and not waiting.done()
            await waiting
            assert loaded(models) == ["b"]

    asyncio.run(work())


def test_who_leaves_while_a_model_loads_leaves_nothing_behind(folders, tmp_path):
    async def work():
        async with offering(folders, tmp_path, num_fitting=1) as models:
            waiting = asyncio.ensure_future(ask(models, "a"))
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            assert models.first.num_leases == 0
            await ask(models, "b")
            assert loaded(models) == ["b"]

    asyncio.run(work())


def test_unused_for_as_long_as_was_said_a_model_is_unloaded(folders, tmp_path):
    async def work():
        async with offering(folders, tmp_path) as models:
            for keep_alive_s in (0.0, 0.05):
                async with AsyncExitStack() as stack:
                    await models.lease("a", stack)
                    models.first.keep_alive_s = keep_alive_s
                    assert models.first.expires_at is not None
                await until(lambda: models.first.state == "stored")
            async with AsyncExitStack() as stack:
                await models.lease("a", stack)
                models.first.keep_alive_s = 0.0
            await ask(models, "a")
            assert models.first.expires_at is None
            await asyncio.sleep(0.1)
            assert loaded(models) == ["a"], "the last request says how long"

    asyncio.run(work())


def test_a_model_that_cannot_be_read_is_an_error_for_its_requests_alone(folders, tmp_path):
    async def work():
        async with offering(folders, tmp_path) as models:
            right = models.first.load

            def broken():
                raise BadFile("the file is broken on purpose")

            models.first.load = broken
            results = await asyncio.gather(ask(models, "a"), ask(models, "a"), ask(models, "b"),
                                           return_exceptions=True)
            assert [type(one) for one in results] == [BadFile, BadFile, tuple]
            assert models.first.state == "stored" and models.held_bytes == models.offers[1].plan.num_bytes
            models.first.load = right
            await ask(models, "a")

    asyncio.run(work())


def test_adapters_that_change_while_a_model_is_read_are_there_when_it_was(folders, tmp_path):
    first = make_adapter(tmp_path / "one")

    async def work():
        async with offering(folders, tmp_path, adapters={"a": {"old": tmp_path / "one"}}) as models:
            load, may_go_on = models.first.load, threading.Event()

            def slow():
                model = load()
                assert may_go_on.wait(120)
                return model

            models.first.load = slow
            waiting = asyncio.ensure_future(ask(models, "a"))
            await until(lambda: models.first.state == "loading")
            assert models.first.served is None and models.loaded == ()
            await models.change_adapters({"a": {"new": first}})
            may_go_on.set()
            await waiting
            assert await ask(models, "new") != await ask(models, "a")
            assert len(models.first.served.engine.model.adapters) == 1

    asyncio.run(work())


def test_names_are_found_and_others_not(folders, tmp_path):
    async def work():
        async with offering(folders, tmp_path) as models:
            with pytest.raises(Refusal, match="no model `d`") as caught:
                await ask(models, "d")
            assert caught.value.status == 404 and caught.value.why == "served: a, b, c"
            with pytest.raises(UsageError, match="two models or adapters are named `b`"):
                await models.change_adapters({"a": {"b": make_adapter(tmp_path / "x")}})

    asyncio.run(work())


def test_adapters_come_change_and_go_while_requests_keep_theirs(folders, tmp_path):
    first, second = make_adapter(tmp_path / "one"), make_adapter(tmp_path / "two", seed=1)
    adapters = {"a": {"polite": tmp_path / "one"}}

    async def work():
        async with offering(folders, tmp_path, adapters=adapters) as models:
            plain, polite = await ask(models, "a"), await ask(models, "polite")
            assert plain != polite
            engine = models.first.served.engine
            async with AsyncExitStack() as stack:
                served = await models.lease("polite", stack)
                taken = served.adapter_of("polite")
                await models.change_adapters({"a": {"polite": second, "new": first}})
                assert await answer(served, taken) == polite, "a request goes on with what it began with"
                changed = await ask(models, "polite")
                assert changed not in (plain, polite) and await ask(models, "new") == polite
                assert len(engine.model.adapters) == 3
            await until(lambda: len(engine.model.adapters) == 2)
            await models.change_adapters({})
            await until(lambda: not engine.model.adapters)
            assert models.names == ("a", "b", "c") and await ask(models, "a") == plain
            with pytest.raises(Refusal):
                await ask(models, "polite")
            await models.change_adapters({"b": {"polite": first}})
            await ask(models, "polite")
            assert loaded(models) == ["a", "b"], "adapters of a model that is not loaded wait with it"

    asyncio.run(work())


def test_an_adapter_goes_to_its_own_base(folders, tmp_path):
    plans = {offer.name: offer.plan for offer in offer_tiny(folders, tmp_path)}
    of_b = make_adapter(tmp_path / "1", base=plans["b"].stored.weights_sha256)
    narrow, wide = make_adapter(tmp_path / "2", width=32), make_adapter(tmp_path / "3")
    found = assign_adapters({"x": of_b, "y": narrow, "z": wide}, plans, wanted={"z": "a"})
    assert found == {"a": {"z": wide}, "b": {"x": of_b}, "c": {"y": narrow}}
    with pytest.raises(UsageError, match="fits a and b") as caught:
        assign_adapters({"z": wide}, plans)
    assert caught.value.hint == "--adapter z@a=..."
    with pytest.raises(UsageError, match="does not fit the model"):
        assign_adapters({"z": wide}, plans, wanted={"z": "c"})
    with pytest.raises(UsageError, match="is for `d`, which is not served"):
        assign_adapters({"z": wide}, plans, wanted={"z": "d"})
    with pytest.raises(UsageError, match="fits no model"):
        assign_adapters({"z": make_adapter(tmp_path / "4", width=48)}, plans)


def test_a_plan_is_what_a_loaded_model_holds(folders, tmp_path):
    for offer in offer_tiny(folders, tmp_path, context_length=64):
        model = offer.load()
        kv = model.engine._cache.kv
        assert sum(part.nbytes for part in (*kv.keys, *kv.values)) == offer.plan.cache_bytes
        assert model.engine.context_length == offer.plan.context_length == 64
        assert model.weights == offer.plan.weights


def test_a_plan_with_a_draft_model_is_what_both_hold(folders, tmp_path):
    first, second, *_ = folders
    alone = {offer.name: offer.plan for offer in offer_tiny(folders, tmp_path, context_length=64)}
    offers = offer_tiny({name: folders[name] for name in (first, second)}, tmp_path, context_length=64,
                        draft=alone[second].stored)
    plan, model = offers[0].plan, offers[0].load()
    assert plan.num_bytes == (alone[first].weights.num_bytes + alone[second].weights.num_bytes
                              + alone[first].cache_bytes + alone[second].cache_bytes)
    caches = (model.engine._cache.kv, model.engine._speculation._draft._cache.kv)
    assert sum(part.nbytes for kv in caches for part in (*kv.keys, *kv.values)) == plan.cache_bytes
    assert model.engine.context_length == plan.context_length == 64
    assert offers[1].plan.draft is None and offers[1].load().engine.settings.speculate == 0


def test_a_plan_of_a_model_that_drafts_for_itself_is_what_it_holds(folders, tmp_path):
    build_mtp(tmp_path / "mtp", vocab_size=512, has_tokenizer=True)
    both = {"mtp": tmp_path / "mtp", "a": folders["a"]}
    plain = offer_tiny(both, tmp_path, context_length=64)[0].plan
    offers = offer_tiny(both, tmp_path, context_length=64, draft="mtp")
    plan, model = offers[0].plan, offers[0].load()
    assert plan.num_bytes > plain.num_bytes and plan.draft == "mtp" and plan.draft_bytes == 0
    assert sum(part.nbytes for part in model.engine._cache.kv.keys) == plan.cache_bytes
    assert plan.cache_bytes * 3 == plain.cache_bytes * 4
    before, after = (offer.load() for offer in (offer_tiny(both, tmp_path, context_length=64)[0], offers[0]))
    assert before.engine.generate([REQUEST]) == after.engine.generate([REQUEST])
    assert after.engine.stats().num_proposed_tokens > 0 and offers[1].plan.draft is None


def test_what_memory_is_left_is_divided_among_caches(folders, tmp_path):
    stored = [offer.plan.stored for offer in offer_tiny(folders, tmp_path)]
    roomy = plan_models(stored, 1 << 30, dtype="float32")
    for plan in roomy:
        assert plan.cache_bytes == SHARED_TOKENS * page_bytes(plan.spec, 1, torch.float32)
    weights = [plan.weights.num_bytes for plan in roomy]
    tight = plan_models(stored, sum(weights) + 6_000_000, dtype="float32")
    assert sum(plan.num_bytes for plan in tight) <= sum(weights) + 6_000_000
    assert all(0 < few.cache_bytes < many.cache_bytes for few, many in zip(tight, roomy, strict=True))
    alone = plan_models(stored, max(weights) + 400_000, dtype="float32")
    assert all(plan.num_bytes <= max(weights) + 400_000 for plan in alone)
    with pytest.raises(NotEnoughMemory, match="needs"):
        plan_models(stored, max(weights), dtype="float32")
    with pytest.raises(UsageError, match="context of 513 tokens"):
        plan_models(stored, 1 << 30, context_length=513)
    assert _divide(100, [(10, 1000), (10, 20), (10, 1000)]) == {1: 20, 0: 40, 2: 40}
    assert _divide(100, [(10, 15), (60, 100)]) == {0: 15, 1: 85}


def test_fifty_cycles_of_loading_and_unloading_leave_nothing(folders, tmp_path):
    pair = {name: folders[name] for name in ("a", "b")}

    def held():
        gc.collect()
        named = [one.name for one in threading.enumerate()]
        return (sum(not name.startswith("asyncio_") for name in named), len(os.listdir("/proc/self/fd")),
                sum(issubclass(type(one), torch.Tensor) for one in gc.get_objects()))

    async def work():
        async with offering(pair, tmp_path, num_fitting=1) as models:
            async def cycle():
                await ask(models, "a")
                await ask(models, "b")

            for _ in range(4):
                await cycle()
            before, before_bytes = held(), hardware.resident_bytes()
            for _ in range(25):
                await cycle()
            return before, held(), hardware.resident_bytes() - before_bytes

    before, after, grown = asyncio.run(work())
    assert after == before
    assert grown < 25 << 20, f"{grown} bytes in 50 cycles; a model's weights and cache are over 1 MiB"
