"""Ranges of what goes into the engine."""

import dataclasses

import numpy as np
import pytest

from openhearth.engine.records import Request, Sampling
from openhearth.engine.settings import EngineSettings
from openhearth.errors import UsageError

NAN = float("nan")
BAD = [("temperature", -0.1), ("temperature", NAN), ("temperature", float("inf")), ("temperature", 1e-9),
       ("top_k", -1), ("top_k", 2.5), ("top_p", 1.1), ("top_p", -0.1), ("min_p", 1.5), ("min_p", NAN),
       ("repetition_penalty", 0.0), ("repetition_penalty", -1.0), ("presence_penalty", 2.1),
       ("frequency_penalty", -2.1), ("seed", -1), ("seed", 2**64), ("max_tokens", 0), ("max_tokens", True),
       ("num_logprobs", -1), ("temperature", "warm"), ("logit_bias", {3: 101.0}), ("logit_bias", {3: NAN})]


@pytest.mark.parametrize("name,value", BAD)
def test_a_value_out_of_range_is_refused_by_name(name, value):
    with pytest.raises(UsageError, match=name):
        Sampling(**{name: value})


def test_the_edges_of_the_ranges_are_allowed():
    Sampling(temperature=0, top_k=0, top_p=0.0, min_p=1.0, presence_penalty=-2, frequency_penalty=2,
             seed=2**64 - 1, max_tokens=1, logit_bias={0: -100})
    Sampling(top_k=np.int64(3), top_p=np.float32(0.5))


def test_replaced_settings_are_checked_too():
    with pytest.raises(UsageError, match="top_p"):
        dataclasses.replace(Sampling(), top_p=2.0)


def test_an_empty_prompt_and_a_bad_count_are_refused():
    with pytest.raises(UsageError, match="prompt is empty"):
        Request(())
    with pytest.raises(UsageError, match="n is"):
        Request((1,), n=0)


@pytest.mark.parametrize("name", ["context_length", "cache_bytes", "page_size", "max_batch_tokens",
                                  "max_num_sequences", "max_queued"])
def test_engine_settings_below_their_least_are_refused_by_name(name):
    with pytest.raises(UsageError, match=name):
        EngineSettings(**{name: 0})
