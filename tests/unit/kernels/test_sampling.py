"""Sampling, against transformers' processors, a slow version in numpy, and the laws of chance."""

import functools
import math
import random

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.native import ISAS
from transformers import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from openhearth.engine.records import Sampling
from openhearth.kernels.sampling import Row, TokenCounts, native, reference
from openhearth.kernels.sampling.reference import top_logprobs, truncate_

V = 700
PATHS = [isa for isa in ISAS if isa != "amx"]  # its file is that of AVX-512


@pytest.fixture(params=["reference", *PATHS])
def draw(request):
    if request.param == "reference":
        return reference.draw
    return functools.partial(native.draw, isa=request.param)


def noise(*shape, seed=0, scale=2.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def logprobs_of(draw, logits_V, sampling, counts=None, mask=None):
    """The reported distribution: every token's logprob; -inf where it cannot be drawn."""
    drawn = draw(logits_V[None].clone(), [Row(
        Sampling(**{**sampling, "num_logprobs": len(logits_V)}), counts=counts, mask=mask)])[0]
    found = torch.full((len(logits_V),), -math.inf)
    for token_id, logprob in drawn.top_logprobs:
        found[token_id] = logprob
    assert found[drawn.token_id] == drawn.logprob
    return found


def transformers_logprobs(logits_V, sampling):
    scores, ids = logits_V[None].clone(), torch.zeros(1, 0, dtype=torch.long)
    if sampling.get("temperature", 1.0) != 1.0:
        scores = TemperatureLogitsWarper(sampling["temperature"])(ids, scores)
    if sampling.get("top_k"):
        scores = TopKLogitsWarper(sampling["top_k"])(ids, scores)
    if sampling.get("top_p", 1.0) < 1.0:
        scores = TopPLogitsWarper(sampling["top_p"])(ids, scores)
    if sampling.get("min_p"):
        scores = MinPLogitsWarper(sampling["min_p"])(ids, scores)
    return scores.log_softmax(-1)[0]


def slow_logprobs(logits, sampling):
    """One token after the other in float64, written from the definitions."""
    scaled = np.array(logits, dtype=np.float64) / sampling.get("temperature", 1.0)
    kept = sorted(range(len(scaled)), key=lambda token_id: -scaled[token_id])
    if sampling.get("top_k"):
        kept = kept[:sampling["top_k"]]

    def probabilities(token_ids):
        weights = [math.exp(scaled[token_id] - scaled[kept[0]]) for token_id in token_ids]
        return [weight / math.fsum(weights) for weight in weights]

    if sampling.get("top_p", 1.0) < 1.0:
        mass, enough = 0.0, []
        for token_id, probability in zip(kept, probabilities(kept), strict=True):
            enough.append(token_id)
            mass += probability
            if mass >= sampling["top_p"]:
                break
        kept = enough
    if sampling.get("min_p"):
        found = probabilities(kept)
        least = sampling["min_p"] * found[0]
        kept = [token_id for token_id, one in zip(kept, found, strict=True) if one >= least]
    return {token_id: math.log(one) for token_id, one in zip(kept, probabilities(kept), strict=True)}


SETTINGS = [{}, {"temperature": 0.6}, {"temperature": 3.0}, {"top_k": 1}, {"top_k": 40}, {"top_k": V + 5},
            {"top_p": 0.9}, {"top_p": 0.05}, {"top_p": 0.999, "temperature": 5.0}, {"min_p": 0.1},
            {"temperature": 0.8, "top_k": 30, "top_p": 0.8, "min_p": 0.05},
            {"temperature": 1.5, "top_k": 300, "top_p": 0.97}]


@pytest.mark.parametrize("sampling", SETTINGS, ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_the_distribution_equals_transformers(draw, sampling, seed):
    logits_V = noise(V, seed=seed)
    expected = transformers_logprobs(logits_V, sampling)
    assert torch.allclose(logprobs_of(draw, logits_V, sampling), expected, atol=1e-5)


@settings(max_examples=60, deadline=None, derandomize=True,
          suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**6), size=st.integers(1, 600), scale=st.sampled_from([0.01, 1.0, 8.0]),
       temperature=st.floats(0.05, 4.0), top_k=st.integers(0, 50), top_p=st.floats(0.01, 1.0),
       min_p=st.floats(0.0, 0.9))
def test_the_distribution_equals_a_slow_version(draw, seed, size, scale, temperature, top_k, top_p, min_p):
    sampling = dict(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    logits_V = noise(size, seed=seed, scale=scale)
    found, expected = logprobs_of(draw, logits_V, sampling), slow_logprobs(logits_V.tolist(), sampling)
    kept = {token_id for token_id in range(size) if found[token_id] > -math.inf}
    # A token whose mass or ratio is within rounding of a limit may fall on either side of it.
    assert len(kept ^ expected.keys()) <= (0 if scale == 1.0 else 2)
    if kept == expected.keys():
        assert all(abs(found[token_id].item() - expected[token_id]) < 2e-5 for token_id in kept)


def test_tokens_that_tie_with_the_last_kept_one_are_kept(draw):
    logits_V = torch.tensor([1.0, 3.0, 2.0, 2.0, 2.0, 0.0])
    for sampling in ({"top_k": 2}, {"top_p": 0.6}):
        found = logprobs_of(draw, logits_V, sampling)
        assert (found > -math.inf).tolist() == [False, True, True, True, True, False]


def test_truncation_works_in_place_and_keeps_the_numbers_it_keeps():
    logits_V = noise(V)
    scaled_V = logits_V.clone()
    truncate_(scaled_V, Sampling(top_k=5, top_p=0.9, min_p=0.01))
    kept = scaled_V > -math.inf
    assert 1 <= kept.sum() <= 5 and torch.equal(scaled_V[kept], logits_V[kept])
    truncate_(logits_V, Sampling(top_k=V))
    assert (logits_V > -math.inf).all()


def test_truncation_counts_only_tokens_that_the_mask_allows(draw):
    mask = torch.zeros(V, dtype=torch.bool)
    mask[10:40] = True
    for sampling in ({"top_k": 12}, {"top_p": 0.7}, {"top_k": 50, "min_p": 0.2}):
        logits_V = noise(V, seed=5)
        expected = transformers_logprobs(logits_V.masked_fill(~mask, -math.inf), sampling)
        assert torch.allclose(logprobs_of(draw, logits_V, sampling, mask=mask), expected, atol=1e-5)


def test_greedy_takes_the_largest_and_the_lowest_id_among_equals(draw):
    logits_RV = torch.zeros(2, V)
    logits_RV[0, [300, 90, 500]] = 4.0
    logits_RV[1, 699] = 1.0
    greedy = Row(Sampling(temperature=0))
    assert [one.token_id for one in draw(logits_RV, [greedy, greedy])] == [90, 699]


def test_greedy_compares_logits_and_not_rounded_logprobs(draw):
    logits_V = torch.zeros(V)
    logits_V[7], logits_V[9] = 1e-7, 1.1e-7
    assert draw(logits_V[None], [Row(Sampling(temperature=0))])[0].token_id == 9


def test_greedy_reports_the_untempered_distribution_after_penalties_bias_and_mask(draw):
    logits_V, mask = noise(V), torch.ones(V, dtype=torch.bool)
    mask[100:] = False
    counts = TokenCounts([1, 2, 3])
    counts.add(2)
    sampling = dict(temperature=0, top_k=3, repetition_penalty=1.4, frequency_penalty=0.5,
                    logit_bias={5: 1.0})
    found = logprobs_of(draw, logits_V, sampling, counts, mask)
    expected = logits_V.clone()
    for token_id in (1, 2, 3):
        expected[token_id] *= 1.4 if expected[token_id] < 0 else 1 / 1.4
    expected[2] -= 0.5
    expected[5] += 1.0
    expected[100:] = -math.inf
    assert torch.allclose(found, expected.log_softmax(-1), atol=1e-5)


def test_a_row_is_drawn_bitwise_the_same_alone_and_among_any_others(draw):
    kinds = [{}, {"temperature": 0}, {"top_k": 20}, {"top_p": 0.9}, {"min_p": 0.1, "temperature": 0.7},
             {"top_p": 0.99, "temperature": 4.0}, {"repetition_penalty": 1.2}, {"logit_bias": {4: 3.0}}]
    logits_RV = noise(16, 5000)
    rows = [Row(Sampling(**kinds[r % 8], seed=r, num_logprobs=3), r, 2 * r,
                TokenCounts([r]) if r % 8 == 6 else None) for r in range(16)]
    alone = [draw(logits_RV[r:r + 1].clone(), [rows[r]])[0] for r in range(16)]
    for seed in range(10):
        chosen = random.Random(seed).sample(range(16), 1 + seed)
        together = draw(logits_RV[chosen].clone(), [rows[r] for r in chosen])
        assert together == [alone[r] for r in chosen]


def test_draws_do_not_depend_on_the_number_of_threads(draw):
    logits_RV, before = noise(4, 60000), torch.get_num_threads()
    rows = [Row(Sampling(seed=r, top_p=0.95 if r % 2 else 1.0, num_logprobs=2)) for r in range(4)]
    found = []
    try:
        for num_threads in (1, 2, 3):
            torch.set_num_threads(num_threads)
            found.append(draw(logits_RV.clone(), rows))
    finally:
        torch.set_num_threads(before)
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.5}, {"top_k": 7}, {"top_p": 0.7}], ids=str)
def test_draws_follow_the_reported_distribution(draw, sampling):
    num_draws, logits_V = 20000, noise(600, seed=3, scale=1.5)
    expected = logprobs_of(draw, logits_V, sampling).double().exp() * num_draws
    counts = torch.zeros(600, dtype=torch.double)
    for start in range(0, num_draws, 2000):
        rows = [Row(Sampling(**sampling, seed=11), 3, start + i) for i in range(2000)]
        for drawn in draw(logits_V.expand(2000, -1).clone(), rows):
            counts[drawn.token_id] += 1
    assert not counts[expected == 0].any()
    # Rare tokens are put into one cell.
    common = expected >= 20
    seen = torch.cat([counts[common], counts[~common].sum()[None]])
    cells = torch.cat([expected[common], expected[~common].sum()[None]])
    seen, cells = seen[cells > 0], cells[cells > 0]
    chi_square = ((seen - cells) ** 2 / cells).sum().item()
    freedom = len(cells) - 1
    assert abs(chi_square - freedom) < 4 * math.sqrt(2 * freedom)


def test_tokens_in_every_block_and_the_last_one_can_be_drawn(draw):
    logits_V = torch.full((600,), -30.0)
    logits_V[[0, 255, 256, 511, 512, 599]] = 0.0
    rows = [Row(Sampling(seed=5), 0, i) for i in range(600)]
    drawn = draw(logits_V.expand(600, -1).clone(), rows)
    counts = np.bincount([one.token_id for one in drawn], minlength=600)
    assert counts[[0, 255, 256, 511, 512, 599]].sum() == 600 and counts[counts > 0].min() > 60


def test_a_hair_of_rounding_almost_never_changes_a_draw(draw):
    logits_V, nudge = noise(3000, seed=8), noise(3000, seed=9, scale=1e-6)
    rows = [Row(Sampling(seed=2), 0, i) for i in range(3000)]
    before = draw(logits_V.expand(3000, -1).clone(), rows)
    after = draw((logits_V + nudge).expand(3000, -1).clone(), rows)
    assert sum(a.token_id != b.token_id for a, b in zip(before, after, strict=True)) <= 1


def test_a_mask_that_allows_nothing_gives_no_number(draw):
    drawn = draw(noise(2, V), [Row(Sampling(), mask=torch.zeros(V, dtype=torch.bool)), Row(Sampling())])
    assert math.isnan(drawn[0].logprob) and drawn[1].logprob < 0


def test_top_logprobs_are_best_first_and_leave_out_the_impossible():
    logprobs_V = torch.tensor([-1.0, -math.inf, -0.5, -1.0])
    assert top_logprobs(logprobs_V, 4) == ((2, -0.5), (0, -1.0), (3, -1.0))
    assert top_logprobs(logprobs_V, 0) == ()


@pytest.mark.parametrize("temperature", [1e-6, 100.0])
def test_extreme_temperatures_stay_finite(draw, temperature):
    drawn = draw(noise(1, V, scale=30.0), [Row(Sampling(temperature=temperature))])[0]
    assert -20 < drawn.logprob <= 0
