"""Log-probabilities: native rows against float64 and against draws; chunks against the whole."""

import math
import subprocess
import sys

import pytest
import torch
from support.native import ISAS, every_dtype, every_isa

from openhearth.engine.records import Sampling
from openhearth.errors import UsageError
from openhearth.kernels import select
from openhearth.kernels.linear import native as packed_linear
from openhearth.kernels.linear.native import PackedWeight, linear_trained
from openhearth.kernels.logprob import native, reference, token_logprobs, token_logprobs_and_entropies
from openhearth.kernels.logprob.chunked import CHUNK_BYTES
from openhearth.kernels.sampling import Row
from openhearth.kernels.sampling import native as sampling

SIZES = [1, 31, 255, 257, 4096, 4097, 49152, 151936]
MANY = 30000
"""A vocabulary of which a chunk holds fewer rows than the tests below have."""


def noise(*shape, seed=0, scale=3.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def targets_of(num_rows, num_tokens, seed=0):
    return torch.randint(num_tokens, (num_rows,), generator=torch.Generator().manual_seed(seed))


@every_isa
@pytest.mark.parametrize("temperature", [1.0, 0.7, 3.0])
@pytest.mark.parametrize("num_tokens", SIZES)
def test_error_stays_under_the_stated_bound(num_tokens, temperature, isa):
    for scale in (0.01, 3.0, 60.0):
        logits_RV, targets_R = noise(9, num_tokens, scale=scale), targets_of(9, num_tokens)
        found_R, entropies_R = native.row_logprobs_and_entropies(logits_RV, targets_R, temperature, isa=isa)
        logprobs_RV = (logits_RV.double() / temperature).log_softmax(-1)
        want_R = logprobs_RV.gather(1, targets_R[:, None])[:, 0]
        u = 2.0**-24
        bound_R = (15 + 3.1 * math.log(num_tokens) + want_R.abs()) * u
        assert ((found_R.double() - want_R).abs() <= bound_R).all()
        assert torch.equal(found_R, native.row_logprobs(logits_RV, targets_R, temperature, isa=isa))
        exact_R = -(logprobs_RV.exp() * logprobs_RV).sum(-1)
        # Every weight's relative error enters once more, times its logprob.
        bound_R = (1 + exact_R) * 20 * (1 + math.log(num_tokens)) * u
        assert ((entropies_R.double() - exact_R).abs() <= bound_R).all()


@every_isa
def test_the_references_agree(isa):
    logits_RV, targets_R, grads_R = noise(6, 999), targets_of(6, 999), noise(6, seed=2)
    for temperature in (1.0, 0.6):
        ours_R, entropies_R = native.row_logprobs_and_entropies(logits_RV, targets_R, temperature, isa=isa)
        torch.testing.assert_close(ours_R, reference.row_logprobs(logits_RV, targets_R, temperature))
        torch.testing.assert_close(entropies_R, reference.row_entropies(logits_RV, temperature))
        theirs_RV = reference.grad_logits(logits_RV, targets_R, grads_R, temperature)
        ours_RV = native.grad_logits(logits_RV.clone(), targets_R, grads_R, temperature, isa=isa)
        torch.testing.assert_close(ours_RV, theirs_RV, rtol=1e-5, atol=1e-7)


@every_isa
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_sampled_token_scores_with_the_bits_it_was_drawn_with(temperature, isa):
    logits_RV = noise(20, 9001)
    rows = [Row(Sampling(temperature=temperature, seed=seed)) for seed in range(20)]
    drawn = sampling.draw(logits_RV.clone(), rows, isa=isa)
    token_ids_R = torch.tensor([one.token_id for one in drawn])
    assert native.row_logprobs(logits_RV, token_ids_R, temperature, isa=isa).tolist() == [
        one.logprob for one in drawn]


@every_isa
def test_a_truncated_row_scores_as_one_that_holds_minus_infinity_in_its_gaps(isa):
    for kind in ({"top_k": 40}, {"top_p": 0.9, "temperature": 0.8}, {"min_p": 0.01}, {"top_p": 0.9999}):
        logits_V = noise(20000, seed=4)
        row = Row(Sampling(**kind, seed=3, num_logprobs=20000))
        drawn = sampling.draw(logits_V[None].clone(), [row], isa=isa)[0]
        kept_V = torch.full_like(logits_V, -math.inf)
        kept = torch.tensor([token_id for token_id, _ in drawn.top_logprobs])
        kept_V[kept] = logits_V[kept]
        found = native.row_logprobs(kept_V.expand(len(kept), -1), kept, row.sampling.temperature, isa=isa)
        assert found.tolist() == [logprob for _, logprob in drawn.top_logprobs]


@every_isa
def test_a_row_has_the_same_bits_alone_strided_and_with_any_threads(isa):
    logits_RV, targets_R = noise(40, 9001), targets_of(40, 9001)
    all_R, entropies_R = native.row_logprobs_and_entropies(logits_RV, targets_R, 1.3, isa=isa)
    grads_R = noise(40, seed=1)
    all_RV = native.grad_logits(logits_RV.clone(), targets_R, grads_R, 1.3, isa=isa)
    wide_RV = torch.cat((logits_RV, logits_RV), 1)[:, 9001:]
    before = select.native().num_threads()
    try:
        for num_threads in (1, 2, 5):
            select.native().set_num_threads(num_threads)
            for rows in (slice(0, 1), slice(7, 12), slice(0, 40)):
                found_R, found_entropies_R = native.row_logprobs_and_entropies(
                    wide_RV[rows], targets_R[rows], 1.3, isa=isa)
                assert torch.equal(found_R, all_R[rows]) and torch.equal(found_entropies_R, entropies_R[rows])
                found_RV = native.grad_logits(logits_RV[rows].clone(), targets_R[rows], grads_R[rows], 1.3,
                                              isa=isa)
                assert torch.equal(found_RV, all_RV[rows])
    finally:
        select.native().set_num_threads(before)


@every_isa
def test_nan_and_infinity_give_nan_in_their_row_alone_and_minus_infinity_does_not(isa):
    logits_RV, targets_R, grads_R = noise(4, 5000), targets_of(4, 5000), torch.ones(4)
    targets_R[3] = 4
    clean_R = native.row_logprobs(logits_RV, targets_R, 1.0, isa=isa)
    logits_RV[0, 4999], logits_RV[1, 3] = math.nan, math.inf
    logits_RV[2] = -math.inf
    logits_RV[3, 4600:] = -math.inf
    found_R, entropies_R = native.row_logprobs_and_entropies(logits_RV, targets_R, 1.0, isa=isa)
    assert found_R[:3].isnan().all() and entropies_R[:3].isnan().all()
    torch.testing.assert_close(found_R[3], logits_RV[3].log_softmax(-1)[4])
    torch.testing.assert_close(entropies_R[3], reference.row_entropies(logits_RV[3:], 1.0)[0])
    assert found_R[3] != clean_R[3]
    grads_RV = native.grad_logits(logits_RV, targets_R, grads_R, 1.0, isa=isa)
    assert grads_RV[:3].isnan().any(1).all() and (grads_RV[3, 4600:] == 0).all()


@every_dtype
def test_chunks_give_the_bits_of_the_whole(dtype):
    num_rows = CHUNK_BYTES // (4 * MANY) + 50
    hidden_TD = noise(num_rows, 24, scale=1.0).to(dtype)
    packed = PackedWeight(noise(MANY, 24, seed=1, scale=0.3).to(dtype))
    targets_T = targets_of(num_rows, MANY)
    logits_TV = packed_linear.linear(hidden_TD, packed, out_dtype=torch.float32)
    want_T, entropies_T = native.row_logprobs_and_entropies(logits_TV, targets_T, 0.9)
    found_T, found_entropies_T = token_logprobs_and_entropies(hidden_TD, packed, targets_T, 0.9)
    assert torch.equal(found_T, want_T) and torch.equal(found_entropies_T, entropies_T)
    for row in (0, 31, 32, num_rows - 1):
        alone = token_logprobs(hidden_TD[row:row + 1], packed, targets_T[row:row + 1], 0.9)
        assert torch.equal(alone, want_T[row:row + 1])


def gradients(hidden_TD, weight_VD, head, targets_T, weights_T, temperature):
    (token_logprobs(hidden_TD, head, targets_T, temperature) * weights_T).sum().backward()
    found = hidden_TD.grad, weight_VD.grad
    hidden_TD.grad = weight_VD.grad = None
    return found


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("num_rows", [1, 5, CHUNK_BYTES // (4 * MANY) + 50])
def test_gradients_are_those_of_a_log_softmax_in_float64(num_rows, temperature):
    hidden_TD = noise(num_rows, 12, scale=1.0).requires_grad_()
    weight_VD = noise(MANY, 12, seed=1).requires_grad_()
    targets_T, weights_T = targets_of(num_rows, MANY), noise(num_rows, seed=3)
    hidden64_TD, weight64_VD = (one.detach().double().requires_grad_() for one in (hidden_TD, weight_VD))
    logprobs_TV = (hidden64_TD @ weight64_VD.t() / temperature).log_softmax(-1)
    (logprobs_TV.gather(1, targets_T[:, None])[:, 0] * weights_T.double()).sum().backward()
    packed = PackedWeight(weight_VD)
    for head in (weight_VD, lambda hidden: linear_trained(hidden, packed, weight_VD)):
        for found, want in zip(gradients(hidden_TD, weight_VD, head, targets_T, weights_T, temperature),
                               (hidden64_TD.grad, weight64_VD.grad), strict=True):
            assert (found.double() - want).abs().max() <= 2e-5 * want.abs().max()


def test_a_head_with_a_total_adds_every_chunk_there():
    num_rows = CHUNK_BYTES // (4 * MANY) + 50
    hidden_TD = noise(num_rows, 12, scale=1.0).requires_grad_()
    weight_VD = noise(MANY, 12, seed=1).requires_grad_()
    packed = PackedWeight(weight_VD)

    def found_gradients():
        return gradients(hidden_TD, weight_VD, lambda hidden: linear_trained(hidden, packed, weight_VD),
                         targets_of(num_rows, MANY), torch.ones(num_rows), 1.0)

    wanted = found_gradients()
    weight_VD.grad_total = torch.ones(MANY, 12)
    found = found_gradients()
    assert found[1] is None and torch.equal(found[0], wanted[0])
    torch.testing.assert_close(weight_VD.grad_total - 1, wanted[1], rtol=1e-4, atol=1e-5)


def test_a_frozen_packed_head_gives_the_hidden_states_their_gradient():
    hidden_TD, weight_VD = noise(6, 8, scale=1.0).requires_grad_(), noise(100, 8, seed=1)
    targets_T = targets_of(6, 100)
    token_logprobs(hidden_TD, PackedWeight(weight_VD), targets_T).sum().backward()
    found_TD, hidden_TD.grad = hidden_TD.grad, None
    (hidden_TD @ weight_VD.t()).log_softmax(-1).gather(1, targets_T[:, None]).sum().backward()
    torch.testing.assert_close(found_TD, hidden_TD.grad)


def test_bfloat16_gradients_are_those_of_float32_within_its_rounding():
    num_rows = CHUNK_BYTES // (4 * MANY) + 50
    hidden_TD, weight_VD = noise(num_rows, 12, scale=1.0), noise(MANY, 12, seed=1, scale=0.3)
    targets_T, weights_T = targets_of(num_rows, MANY), noise(num_rows, seed=3)
    low = [one.bfloat16().requires_grad_() for one in (hidden_TD, weight_VD)]
    high = [one.detach().float().requires_grad_() for one in low]
    for found, want in zip(gradients(*low, low[1], targets_T, weights_T, 1.0),
                           gradients(*high, high[1], targets_T, weights_T, 1.0), strict=True):
        assert found.dtype == torch.bfloat16
        assert (found.float() - want).norm() < 0.01 * want.norm()


def test_a_head_whose_gradient_needs_its_logits_is_refused_not_wrong():
    hidden_TD = noise(3, 8, scale=1.0).requires_grad_()
    weight_DD = torch.eye(8).requires_grad_()
    for head in (torch.exp, lambda hidden: torch.exp(hidden @ weight_DD)):  # one frozen, one that learns
        with pytest.raises(RuntimeError, match="inplace"):
            token_logprobs(hidden_TD, head, targets_of(3, 8)).sum().backward()


def test_what_does_not_fit_is_refused():
    hidden_TD, packed = noise(3, 8), PackedWeight(noise(10, 8))
    for targets_T, temperature in ((targets_of(2, 10), 1.0), (targets_of(3, 10), 0.0),
                                   (targets_of(3, 10), math.nan), (torch.tensor([0, 10, 3]), 1.0),
                                   (torch.tensor([0, -1, 3]), 1.0), (targets_of(3, 10).int(), 1.0)):
        with pytest.raises(UsageError):
            token_logprobs(hidden_TD, packed, targets_T, temperature)
    with pytest.raises(UsageError):
        native.row_logprobs(noise(2, 10).double(), targets_of(2, 10), 1.0, isa=ISAS[0])
    assert token_logprobs(hidden_TD[:0], packed, targets_of(0, 10)).shape == (0,)


MEASURE = """
import resource, torch
from openhearth.kernels.logprob import token_logprobs
from openhearth.kernels.logprob.chunked import CHUNK_BYTES
from openhearth.kernels.select import set_num_threads

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

set_num_threads(1)
num_rows, num_tokens, width = 2500, 50000, 16
weight = (torch.randn(num_tokens, width) * 0.1).bfloat16()
targets = torch.randint(num_tokens, (num_rows,))
def run(rows):
    hidden = torch.randn(rows, width).bfloat16().requires_grad_()
    token_logprobs(hidden, weight, targets[:rows]).sum().backward()
run(2)  # what torch sets up once
before = peak()
run(num_rows)
print(peak() - before, CHUNK_BYTES, 4 * num_rows * num_tokens)
"""


def test_memory_is_that_of_a_chunk_and_not_of_the_pack():
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    grown, chunk_bytes, whole_bytes = map(int, done.stdout.split())
    # Logits in bfloat16 and float32 one after the other; then float32 and their gradient in bfloat16.
    assert grown < 3 * chunk_bytes < whole_bytes / 2
