"""Memory that is predicted before a run: what grows with tokens, pages of the system, a draft model."""

import pytest

from openhearth.cli.memory import plan_memory, with_draft
from openhearth.engine.memory import SMALL_PAGE_TOKENS
from openhearth.spec import ModelSpec, RopeSpec, WeightChoice

SPEC = ModelSpec("llama", 49152, 576, 30, 9, 3, 64, 1536, 8192, 1e-5, RopeSpec(), True, False, False,
                 "bfloat16")
WEIGHTS = WeightChoice("stored", "bfloat16", "as in the file", 98 * 10**6)


@pytest.mark.parametrize("huge_page", [0, 2 << 20])
def test_a_cache_takes_whole_pages_of_the_system_in_every_layer(huge_page):
    places, per_token = 2 * SPEC.num_layers, SPEC.kv_bytes_per_token(2)
    for num_tokens in (1, 100, SMALL_PAGE_TOKENS, SMALL_PAGE_TOKENS + 1, 6000, 8192):
        found = plan_memory(SPEC, WEIGHTS, num_tokens, huge_page_bytes=huge_page).cache_bytes
        written = per_token * num_tokens
        assert written <= found < written + places * max(huge_page, 1)
        if num_tokens <= SMALL_PAGE_TOKENS or huge_page == 0:
            assert found == written
        else:
            assert found % (places * huge_page) == 0
    assert plan_memory(SPEC, WEIGHTS, 9999).cached_tokens == 8192


def test_a_cache_takes_no_more_than_it_has_room_for():
    tiny = ModelSpec("llama", 512, 64, 2, 4, 2, 16, 128, 8192, 1e-5, RopeSpec(), True, False, False,
                     "float32")
    found = plan_memory(tiny, WeightChoice("float32", "float32", "", 10**6), 4000, huge_page_bytes=1 << 30)
    assert found.cache_bytes == tiny.kv_bytes_per_token(4) * 16384


def test_a_draft_model_adds_weights_cache_and_workspace_but_no_second_runtime():
    alone = plan_memory(SPEC, WEIGHTS, 100)
    both = with_draft(alone, alone)
    assert both.weights_bytes == 2 * alone.weights_bytes and both.cache_bytes == 2 * alone.cache_bytes
    assert alone.workspace_bytes < both.workspace_bytes < 1.3 * alone.workspace_bytes
    assert both.cached_tokens == 100 and "draft stored" in both.weights
