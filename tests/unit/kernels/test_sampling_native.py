"""Native draws against the reference and against themselves, bit for bit."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.native import ISAS, every_isa

from openhearth.engine.records import Sampling
from openhearth.errors import UsageError
from openhearth.kernels import select
from openhearth.kernels.sampling import Row, TokenCounts, native, reference
from openhearth.kernels.sampling.noise import uniforms
from openhearth.kernels.sampling.penalties import add_bias_, penalize_

SIZES = [1, 31, 4097, 49152, 151936]
KINDS = [{}, {"temperature": 0}, {"temperature": 0.7}, {"top_k": 40}, {"top_k": 5000, "temperature": 2.5},
         {"top_p": 0.9}, {"top_p": 0.999, "temperature": 4.0}, {"top_p": 0.3}, {"min_p": 0.05},
         {"temperature": 0.8, "top_k": 50, "top_p": 0.95, "min_p": 0.02}, {"repetition_penalty": 1.3},
         {"logit_bias": {0: 4.0}}, {"temperature": 0, "presence_penalty": 1.0, "frequency_penalty": 0.5}]


def noise(*shape, seed=0, scale=3.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def rows_of(num_tokens, kinds, num_logprobs=0):
    rows = []
    for place, kind in enumerate(kinds):
        counts = TokenCounts([0, num_tokens // 2])
        counts.add(num_tokens - 1)
        settings = {"seed": 1000 + place, "num_logprobs": min(num_logprobs, num_tokens), **kind}
        rows.append(Row(Sampling(**settings), place % 3, 5 * place, counts))
    return rows


def speeds(logits_V, row):
    """Every token's place in the race, in float64: probability over noise, in both rounds."""
    weights_V = np.exp(logits_V.double().numpy() - logits_V.max().item())
    num_blocks = -(-len(weights_V) // 256)
    noise_N = -np.log(uniforms([row.sampling.seed], [row.completion], [row.draw], 256 + num_blocks)[0])
    blocks_BW = np.pad(weights_V, (0, num_blocks * 256 - len(weights_V))).reshape(num_blocks, 256)
    rounds = [blocks_BW.sum(1) / noise_N[256:]]
    rounds.append(blocks_BW[rounds[0].argmax()] / noise_N[:256])
    return rounds


def is_near_tie(logits_V, row):
    best = [np.sort(one)[::-1][:2] for one in speeds(logits_V, row)]
    return any(len(two) == 2 and two[0] - two[1] < 1e-5 * two[0] for two in best)


def kept_logits(logits_V, row):
    """The row's logits in float64, adjusted, over temperature, truncated as the reference does."""
    logits_V, sampling = logits_V.clone(), row.sampling
    penalize_(logits_V, sampling, row.counts)
    if sampling.logit_bias:
        add_bias_(logits_V, sampling)
    if sampling.temperature == 0:
        return logits_V.double()
    scaled_V = logits_V / sampling.temperature
    reference.truncate_(scaled_V, sampling)
    return (logits_V.double() / sampling.temperature).masked_fill(scaled_V == -math.inf, -math.inf)


@every_isa
@pytest.mark.parametrize("num_tokens", SIZES)
def test_tokens_are_the_references_and_logprobs_within_the_stated_bound(num_tokens, isa):
    kinds = KINDS * (3 if num_tokens < 100000 else 1)
    logits_RV, rows = noise(len(kinds), num_tokens, seed=num_tokens), rows_of(num_tokens, kinds)
    found = native.draw(logits_RV.clone(), rows, isa=isa)
    wanted = reference.draw(logits_RV.clone(), rows)
    u, num_same = 2.0**-24, 0
    for logits_V, row, ours, theirs in zip(logits_RV, rows, found, wanted, strict=True):
        kept_V = kept_logits(logits_V, row)
        num_same += ours.token_id == theirs.token_id
        assert ours.token_id == theirs.token_id or is_near_tie(kept_V, row)
        exact = kept_V.log_softmax(-1)[ours.token_id].item()
        bound = (15 + 3.1 * math.log(num_tokens) + abs(exact)) * u
        if row.sampling.top_p < 1:
            bound += 2e-5  # either may keep a few tokens more, whose mass is within rounding of top_p
        assert abs(ours.logprob - exact) <= bound
    assert num_same >= len(rows) - 1


@every_isa
def test_a_row_has_the_same_bits_alone_in_any_pack_strided_and_with_any_threads(isa):
    before = select.native().num_threads()
    for num_tokens in (31, 4097, 20000):
        kinds = KINDS * 2
        logits_RV, rows = noise(len(kinds), num_tokens, seed=1), rows_of(num_tokens, kinds, num_logprobs=4)
        together = native.draw(logits_RV.clone(), rows, isa=isa)
        for r in range(len(rows)):
            assert native.draw(logits_RV[r:r + 1].clone(), rows[r:r + 1], isa=isa) == together[r:r + 1]
        assert native.draw(logits_RV[3:8].clone(), rows[3:8], isa=isa) == together[3:8]
        wide = torch.cat((logits_RV, logits_RV), 1)
        assert native.draw(wide[:, num_tokens:], rows, isa=isa) == together
        try:
            for num_threads in (1, 2, 5):
                select.native().set_num_threads(num_threads)
                assert native.draw(logits_RV.clone(), rows, isa=isa) == together
                assert native.draw(logits_RV[:2].clone(), rows[:2], isa=isa) == together[:2]
        finally:
            select.native().set_num_threads(before)


def test_wider_paths_draw_the_tokens_of_avx2():
    logits_RV, rows = noise(len(KINDS), 5000), rows_of(5000, KINDS)
    found = [[one.token_id for one in native.draw(logits_RV.clone(), rows, isa=isa)] for isa in ISAS]
    assert all(token_ids == found[0] for token_ids in found)


@every_isa
@settings(max_examples=60, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), size=st.integers(600, 20000),
       shape=st.sampled_from(["tiny", "normal", "wide", "rounded", "two", "peak"]),
       top_k=st.integers(0, 6000),
       top_p=st.sampled_from([0.0, 1e-6, 0.05, 0.5, 0.9, 0.99, 0.9999, 1.0]),
       min_p=st.sampled_from([0.0, 1e-12, 0.03, 0.7, 1.0]), num_masked=st.integers(0, 599))
def test_what_is_kept_is_what_the_reference_keeps(isa, seed, size, shape, top_k, top_p, min_p, num_masked):
    logits_V = noise(size, seed=seed, scale={"tiny": 1e-4, "wide": 40.0}.get(shape, 2.0))
    if shape == "rounded":
        logits_V = logits_V.round()
    elif shape == "two":
        logits_V = (logits_V > 0).float()
    elif shape == "peak":
        logits_V[seed % size] = 30.0
    logits_V[torch.randperm(size, generator=torch.Generator().manual_seed(seed))[:num_masked]] = -math.inf
    sampling = Sampling(top_k=top_k, top_p=top_p, min_p=min_p, num_logprobs=size)
    wanted_V = logits_V.clone()
    reference.truncate_(wanted_V, sampling)
    drawn = native.draw(logits_V[None].clone(), [Row(sampling)], isa=isa)[0]
    kept = {token_id for token_id, _ in drawn.top_logprobs}
    wanted = set((wanted_V > -math.inf).nonzero()[:, 0].tolist())
    if kept != wanted:  # the last token that counts is another one, because a sum is within rounding of top_p
        probs_V = logits_V.double().softmax(-1)
        if 0 < top_k < size:
            probs_V[logits_V < logits_V.sort(descending=True)[0][top_k - 1]] = 0
            probs_V /= probs_V.sum()
        fewer, more = sorted((kept, wanted), key=len)
        assert fewer < more and abs(probs_V[list(fewer)].sum().item() - top_p) < 1e-5


@every_isa
def test_reported_tokens_are_the_best_in_order_the_lower_id_among_equals(isa):
    logits_V = noise(30000).mul(2).round().div(2)
    logits_V[::3] = -math.inf
    order = sorted((v for v in range(30000) if v % 3), key=lambda v: (-logits_V[v].item(), v))
    for sampling in ({"temperature": 0}, {"top_k": 700}, {"top_p": 0.5}, {"min_p": 0.2}):
        for count in (1, 5, 800, 30000):
            rows = [Row(Sampling(**sampling, num_logprobs=count))]
            found = native.draw(logits_V[None].clone(), rows, isa=isa)[0].top_logprobs
            assert [token_id for token_id, _ in found] == order[:len(found)]
            logprobs = [logprob for _, logprob in found]
            assert logprobs == sorted(logprobs, reverse=True)
            assert len(found) == min(count, 20000) or sampling.keys() & {"top_k", "top_p", "min_p"}


@every_isa
def test_penalties_bias_and_mask_change_the_logits_as_the_reference_does(isa):
    logits_RV, rows = noise(3, 997), rows_of(997, [
        {"repetition_penalty": 1.3, "logit_bias": {996: 2.5, 3: -100.0}},
        {"presence_penalty": 0.3, "frequency_penalty": -0.7}, {"repetition_penalty": 0.8, "temperature": 0}])
    mask = torch.rand(997, generator=torch.Generator().manual_seed(1)) < 0.5
    rows[1] = rows[1]._replace(mask=mask)
    ours_RV = logits_RV.clone()
    native.draw(ours_RV, rows, isa=isa)
    for ours_V, logits_V, row in zip(ours_RV, logits_RV, rows, strict=True):
        penalize_(logits_V, row.sampling, row.counts)
        if row.sampling.logit_bias:
            add_bias_(logits_V, row.sampling)
        if row.mask is not None:
            logits_V.masked_fill_(~row.mask, -math.inf)
        assert torch.equal(ours_V, logits_V)


@every_isa
@pytest.mark.parametrize("num_tokens", [1, 31, 4097, 20000])
def test_nan_and_infinity_give_nan_in_their_row_alone(num_tokens, isa):
    kinds = [{}, {"temperature": 0}, {"top_k": 3}, {"top_p": 0.9}, {"min_p": 0.1}]
    for bad in (math.nan, math.inf):
        for place in {0, num_tokens // 2, num_tokens - 1}:
            logits_RV, rows = noise(5, num_tokens), rows_of(num_tokens, kinds, num_logprobs=2)
            clean = native.draw(logits_RV.clone(), rows, isa=isa)
            for r in range(5):
                dirty_RV = logits_RV.clone()
                dirty_RV[r, place] = bad
                found = native.draw(dirty_RV, rows, isa=isa)
                assert math.isnan(found[r].logprob) and 0 <= found[r].token_id < num_tokens
                assert not found[r].top_logprobs
                assert found[:r] + found[r + 1:] == clean[:r] + clean[r + 1:]


@every_isa
def test_minus_infinity_is_never_drawn_and_a_row_of_it_gives_nan(isa):
    logits_V = torch.full((9000,), -math.inf)
    assert math.isnan(native.draw(logits_V[None].clone(), [Row(Sampling())], isa=isa)[0].logprob)
    logits_V[[4100, 8999]] = torch.tensor([-1e30, -1e30])
    for kind in ({}, {"temperature": 0}, {"top_k": 5}, {"top_p": 0.999}, {"min_p": 0.5}):
        rows = [Row(Sampling(**kind, seed=seed, num_logprobs=4)) for seed in range(40)]
        found = native.draw(logits_V.expand(40, -1).clone(), rows, isa=isa)
        assert {one.token_id for one in found} == ({4100} if kind.get("temperature") == 0 else {4100, 8999})
        assert all(abs(one.logprob + math.log(2)) < 1e-6 and len(one.top_logprobs) == 2 for one in found)


@every_isa
def test_numbers_at_the_ends_of_float32_stay_in_order(isa):
    logits_V = torch.tensor([-3.4e38, 3.4e38, 0.0, 1e-45, 3.3e38] * 200)
    for kind in ({}, {"top_k": 3}, {"top_p": 0.5}, {"temperature": 1e-6},
                 {"temperature": 9.0, "min_p": 1e-6}):
        drawn = native.draw(logits_V[None].clone(), [Row(Sampling(**kind))], isa=isa)[0]
        assert drawn.token_id % 5 == 1 and abs(drawn.logprob + math.log(200)) < 1e-6


def test_what_does_not_fit_is_refused():
    logits_RV, row = noise(2, 10), Row(Sampling())
    for bad_RV, rows in ((logits_RV.double(), [row, row]), (logits_RV, [row]),
                         (logits_RV, [row, row._replace(mask=torch.ones(9, dtype=torch.bool))]),
                         (logits_RV, [row, row._replace(mask=torch.ones(10))])):
        with pytest.raises(UsageError):
            native.draw(bad_RV, rows, isa=ISAS[0])
    with pytest.raises(UsageError, match="neon"):
        native.draw(logits_RV, [row, row], isa="neon")
    assert native.draw(logits_RV[:0], [], isa=ISAS[0]) == []
