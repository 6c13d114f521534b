"""Penalties and bias, against transformers and the formula of the OpenAI reference."""

import random

import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor

from openhearth.engine.records import Sampling
from openhearth.kernels.sampling import TokenCounts, needs_counts
from openhearth.kernels.sampling.penalties import add_bias_, penalize_

V = 50


def counts_of(prompt, completion):
    counts = TokenCounts(prompt)
    for token_id in completion:
        counts.add(token_id)
    return counts


def test_counts_hold_distinct_tokens_and_count_the_completion_alone():
    counts = counts_of([5, 6, 5], [6, 7, 6])
    assert dict(zip(counts.token_ids, counts.counts, strict=True)) == {5: 0, 6: 2, 7: 1}


@pytest.mark.parametrize("penalty", [0.5, 1.3, 2.0])
def test_repetition_penalty_equals_transformers(penalty):
    logits_V = torch.randn(V, generator=torch.Generator().manual_seed(1)) * 3
    prompt, completion = [3, 9, 3, 20], [9, 11, 11]
    theirs = RepetitionPenaltyLogitsProcessor(penalty)
    expected = theirs(torch.tensor([prompt + completion]), logits_V[None])[0]
    penalize_(logits_V, Sampling(repetition_penalty=penalty), counts_of(prompt, completion))
    assert torch.equal(logits_V, expected)


def test_presence_and_frequency_follow_the_formula_over_the_completion_alone():
    draw = random.Random(4)
    prompt, completion = [draw.randrange(V) for _ in range(9)], [draw.randrange(V) for _ in range(30)]
    before = torch.randn(V, generator=torch.Generator().manual_seed(2))
    after = before.clone()
    penalize_(after, Sampling(presence_penalty=0.7, frequency_penalty=-0.3), counts_of(prompt, completion))
    for token_id in range(V):
        count = completion.count(token_id)
        expected = before[token_id].item() - count * -0.3 - (count > 0) * 0.7
        assert after[token_id].item() == pytest.approx(expected, abs=1e-5)


def test_repetition_comes_before_the_others():
    logits_V = torch.full((4,), 2.0)
    penalize_(logits_V, Sampling(repetition_penalty=2.0, presence_penalty=1.0), counts_of([0], [1]))
    assert logits_V.tolist() == [1.0, 0.0, 2.0, 2.0]


def test_bias_is_added_to_its_tokens_only():
    logits_V = torch.zeros(4)
    add_bias_(logits_V, Sampling(logit_bias={1: -100.0, 3: 2.5}))
    assert logits_V.tolist() == [0.0, -100.0, 0.0, 2.5]


def test_counts_are_kept_only_when_a_penalty_needs_them():
    assert not needs_counts(Sampling(logit_bias={1: 1.0}))
    for name in ("presence_penalty", "frequency_penalty"):
        assert needs_counts(Sampling(**{name: 0.1}))
    assert needs_counts(Sampling(repetition_penalty=0.9))
