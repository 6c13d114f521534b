"""What truncation keeps, and log-probabilities over it: the draw's, bit for bit, and their gradients."""

import math

import pytest
import torch

from openhearth.engine.records import Sampling
from openhearth.errors import UsageError
from openhearth.kernels import select
from openhearth.kernels.logprob import KeptTokens, token_logprobs, token_logprobs_and_entropies
from openhearth.kernels.sampling import Row, draw, kept_tokens, reference

KINDS = [{"top_k": 7}, {"top_p": 0.8}, {"min_p": 0.1}, {"temperature": 0.6, "top_k": 900},
         {"temperature": 1.7, "top_k": 60, "top_p": 0.9, "min_p": 0.02}]


def noise(*shape, seed=0, scale=3.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def rows_of(kept):
    return [kept.rows(row, row + 1).token_ids_K.tolist() for row in range(len(kept.starts) - 1)]


def test_masks_rows_and_joins_are_what_they_say():
    mask_RV = noise(5, 40) > 1
    kept = KeptTokens.from_mask(mask_RV)
    assert rows_of(kept) == [row.nonzero()[:, 0].tolist() for row in mask_RV]
    joined = KeptTokens.join([kept.rows(3, 5), kept.rows(0, 3)])
    assert rows_of(joined) == rows_of(kept)[3:] + rows_of(kept)[:3]
    logits_RV = noise(5, 40, seed=1)
    masked_RV = logits_RV.clone()
    kept.mask_(masked_RV)
    assert torch.equal(masked_RV, logits_RV.masked_fill(~mask_RV, -math.inf))


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("num_tokens", [50, 4097, 49152])
def test_what_is_kept_is_what_the_draw_can_report(kind, num_tokens):
    sampling = Sampling(**kind)
    logits_RV = noise(4, num_tokens)
    kept = kept_tokens(logits_RV.clone(), sampling)
    tops = draw(logits_RV.clone(), [Row(Sampling(**kind, num_logprobs=num_tokens))] * 4)
    for found, drawn in zip(rows_of(kept), tops, strict=True):
        assert found == sorted(token_id for token_id, _ in drawn.top_logprobs)
        assert drawn.token_id in found and len(found) <= min(num_tokens, sampling.top_k or num_tokens)
    for logits_V, found in zip(logits_RV, rows_of(kept), strict=True):
        scaled_V = logits_V / sampling.temperature
        reference.truncate_(scaled_V, sampling)
        wanted = set((scaled_V > -math.inf).nonzero()[:, 0].tolist())
        assert len(wanted ^ set(found)) <= 1, "the two kernels may round the last one differently"


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_logprobs_over_what_was_kept_are_those_of_the_draw(kind):
    head_VD, hidden_TD = noise(4097, 16, scale=0.5), noise(50, 16, seed=2)
    logits = (lambda rows: rows @ head_VD.t()) if not select.chosen().is_native else _packed_head(head_VD)
    sampling = Sampling(**kind)
    logits_TV = logits(hidden_TD)
    kept = kept_tokens(logits_TV.clone(), sampling)
    drawn = draw(logits_TV.clone(), [Row(Sampling(**kind, seed=row)) for row in range(50)])
    targets_T = torch.tensor([one.token_id for one in drawn])
    sampled_T = torch.tensor([one.logprob for one in drawn])
    found_T, entropies_T = token_logprobs_and_entropies(hidden_TD, logits, targets_T, sampling.temperature,
                                                        kept)
    if select.chosen().is_native:
        assert torch.equal(found_T, sampled_T)
    torch.testing.assert_close(found_T, sampled_T, rtol=0, atol=2e-5)
    masked_TV = logits_TV.double()
    kept.mask_(masked_TV)
    probs_TV = torch.softmax(masked_TV / sampling.temperature, -1)
    wanted_T = -(probs_TV * probs_TV.clamp(min=1e-300).log()).sum(-1)
    torch.testing.assert_close(entropies_T.double(), wanted_T, rtol=1e-4, atol=1e-5)


def _packed_head(head_VD):
    from openhearth.kernels.linear.native import PackedWeight, linear

    packed = PackedWeight(head_VD)
    return lambda rows: linear(rows, packed, out_dtype=torch.float32)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_gradients_over_what_was_kept_are_those_of_autograd_in_float64(temperature):
    head_VD, hidden_TD = noise(300, 8, scale=0.5), noise(40, 8, seed=2).requires_grad_(True)
    kept = kept_tokens((hidden_TD @ head_VD.t()).detach(), Sampling(temperature=temperature, top_k=30))
    targets_T = torch.tensor([ids[len(ids) // 2] for ids in rows_of(kept)])
    grads_T = noise(40, seed=4)
    ours, = torch.autograd.grad(token_logprobs(hidden_TD, head_VD, targets_T, temperature, kept), hidden_TD,
                                grads_T)
    exact_TD = hidden_TD.detach().double().requires_grad_(True)
    mask_TV = torch.zeros(40, 300)
    kept.mask_(mask_TV)
    logprobs_TV = torch.log_softmax(exact_TD @ head_VD.double().t() / temperature + mask_TV, -1)
    chosen_T = logprobs_TV.gather(1, targets_T[:, None])[:, 0]
    wanted, = torch.autograd.grad(chosen_T, exact_TD, grads_T.double())
    torch.testing.assert_close(ours.double(), wanted, rtol=1e-4, atol=1e-5)
    plain, = torch.autograd.grad(token_logprobs(hidden_TD, head_VD, targets_T, temperature), hidden_TD,
                                 grads_T)
    assert (plain - ours).abs().max() > 1e-2, "what was left out must matter"


def test_kept_tokens_of_other_rows_are_refused():
    kept = KeptTokens.from_mask(torch.ones(3, 10, dtype=torch.bool))
    with pytest.raises(UsageError, match="kept tokens of 3 rows for 4"):
        token_logprobs(noise(4, 6), noise(10, 6), torch.zeros(4, dtype=torch.int64), 1.0, kept)
