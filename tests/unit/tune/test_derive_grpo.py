"""What nobody said about a GRPO run, and the room its rollouts may take."""

from dataclasses import replace

import pytest

from openhearth.engine import EngineSettings
from openhearth.engine.memory import choose_num_pages
from openhearth.errors import UsageError
from openhearth.formats import open_checkpoint
from openhearth.spec import read_spec
from openhearth.tune.derive_grpo import cache_bytes, derive_grpo_plan, engine_settings
from openhearth.tune.settings import GrpoSettings

GIVEN = GrpoSettings("m", ("t",), "o", prompts=4, group_size=8)


@pytest.fixture(scope="module")
def spec(tiny_folder):
    return read_spec(open_checkpoint(tiny_folder))


def plan_of(settings, spec, *, available_bytes=2**33):
    return derive_grpo_plan(settings, spec, [40, 61, 50], 128, available_bytes=available_bytes)


def test_what_was_given_stays_and_the_rest_is_the_papers(spec):
    plan = plan_of(replace(GIVEN, clip_low=0.1, loss="dapo"), spec)
    assert (plan.settings.clip_low, plan.settings.clip_high, plan.settings.overlong) == (0.1, 0.28, "penalty")
    assert "clip_low" not in plan.reasons and "dapo" in plan.reasons["clip_high"]
    assert plan.settings.max_tokens == 128 and plan.num_steps > 0 and "steps" in plan.reasons
    assert plan_of(replace(GIVEN, loss="gspo", steps=7), spec).num_steps == 7
    assert plan_of(replace(GIVEN, loss="gspo"), spec).settings.clip_high == 4e-4


def test_a_completion_that_cannot_fit_is_refused_with_one_that_can(spec):
    with pytest.raises(UsageError, match="prompts of 61 tokens and completions of 500") as refused:
        plan_of(replace(GIVEN, max_tokens=500), spec)
    assert refused.value.hint == f"--max-tokens {spec.max_position - 61}"
    plan_of(replace(GIVEN, max_tokens=spec.max_position - 61), spec)


def test_the_cache_holds_a_step_together_as_far_as_memory_allows(spec):
    settings = plan_of(GIVEN, spec).settings
    plenty, little = (engine_settings(settings, spec, 61 + 128, available) for available in (2**33, 2**20))
    pages = choose_num_pages(spec, plenty, _dtype(settings), 2**33)
    assert pages * plenty.page_size >= 32 * (61 + 128) and plenty.max_num_sequences == 32
    assert isinstance(little, EngineSettings) and little.cache_bytes < plenty.cache_bytes
    least = choose_num_pages(spec, little, _dtype(settings), 2**20)
    assert least * little.page_size >= 61 + 128, "one completion always fits"
    assert cache_bytes(settings, spec, 189, 2**33) == plenty.cache_bytes


def test_a_frozen_copy_for_the_divergence_is_counted(spec):
    without, beside = (plan_of(replace(GIVEN, weights="full", kl=kl), spec).memory for kl in (0.0, 0.1))
    assert beside.weights_bytes == without.weights_bytes * 3 // 2
    lora = [plan_of(replace(GIVEN, kl=kl), spec).memory for kl in (0.0, 0.1)]
    assert lora[0] == lora[1], "the model without its adapter needs none"


def _dtype(settings):
    import torch

    return getattr(torch, settings.dtype)
