"""Reverse divergence over the vocabulary: values and gradients against autograd in float64, by chunks."""

import math
import subprocess
import sys

import pytest
import torch
from support.command import environment
from torch import nn

from openhearth.errors import UsageError
from openhearth.kernels.logprob import reverse_divergences
from openhearth.kernels.logprob.chunked import CHUNK_BYTES

MANY = 30000


def noise(*shape, seed=0, scale=1.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def reference(hidden_TD, weight_VD, teacher_TE, teacher_VE):
    logprobs_TV = torch.log_softmax(hidden_TD.double() @ weight_VD.double().T, -1)
    wanted_TV = torch.log_softmax(teacher_TE.double() @ teacher_VE.double().T, -1)
    return (logprobs_TV.exp() * (logprobs_TV - wanted_TV)).sum(-1)


def test_three_tokens_by_hand():
    student, teacher = torch.tensor([[0.5, 0.25, 0.25]]).log(), torch.tensor([[0.25, 0.25, 0.5]]).log()
    student.requires_grad_(True)
    found = reverse_divergences(student, torch.eye(3), teacher, torch.eye(3))
    assert found.item() == pytest.approx(0.25 * math.log(2), rel=1e-6)
    found.sum().backward()
    wanted = [p * (d - 0.25) * math.log(2) for p, d in ((0.5, 1), (0.25, 0), (0.25, -1))]
    assert student.grad[0].tolist() == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("num_tokens, num_rows", [(257, 40), (MANY, CHUNK_BYTES // (4 * MANY) + 45)])
def test_values_and_gradients_are_those_of_autograd_in_float64(num_tokens, num_rows):
    weight = nn.Parameter(noise(num_tokens, 16, scale=0.5))
    hidden = noise(num_rows, 16, seed=1).requires_grad_(True)
    teacher, teacher_weight = noise(num_rows, 8, seed=2), noise(num_tokens, 8, seed=3, scale=0.5)
    scales = noise(num_rows, seed=4)
    wanted = reference(hidden, weight, teacher, teacher_weight)
    gradients = torch.autograd.grad((wanted * scales).sum(), (hidden, weight))
    head, teacher_head = (lambda rows: rows @ weight.T), (lambda rows: rows @ teacher_weight.T)
    for one, other in ((head, teacher_head), (weight, teacher_weight)):
        found = reverse_divergences(hidden, one, teacher, other)
        torch.testing.assert_close(found.double(), wanted.detach(), rtol=1e-5, atol=1e-5)
        for ours, theirs in zip(torch.autograd.grad((found * scales).sum(), (hidden, weight)), gradients,
                                strict=True):
            assert (ours - theirs).norm() <= 1e-5 * theirs.norm()


def test_a_student_that_is_its_teacher_is_not_moved():
    weight, hidden = noise(100, 16), noise(5, 16, seed=1).requires_grad_(True)
    found = reverse_divergences(hidden, weight, hidden, weight)
    assert found.tolist() == [0.0] * 5
    found.sum().backward()
    assert not hidden.grad.any()


def test_other_vocabularies_and_lengths_are_refused():
    with pytest.raises(UsageError, match="a teacher of 90 tokens for a student of 100"):
        reverse_divergences(noise(2, 8), noise(100, 8), noise(2, 8), noise(90, 8))
    with pytest.raises(UsageError, match="3 rows"):
        reverse_divergences(noise(2, 8), noise(100, 8), noise(3, 8), noise(100, 8))


PEAK = """
import torch
from openhearth.hardware import peak_memory_bytes
from openhearth.kernels.logprob import reverse_divergences
weight, teacher_weight = torch.randn(150_000, 8), torch.randn(150_000, 8)
def step(rows):
    hidden = torch.randn(rows, 8, requires_grad=True)
    reverse_divergences(hidden, weight, torch.randn(rows, 8), teacher_weight).sum().backward()
    return peak_memory_bytes()
step(16)
short = step(300)
print(step(1500) - short)
"""


def test_memory_is_that_of_chunks(tmp_path):
    done = subprocess.run([sys.executable, "-c", PEAK], text=True, env=environment(tmp_path),
                          capture_output=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 1500 * 150_000 * 4 / 8, "logits of all rows would be 900 MB"
