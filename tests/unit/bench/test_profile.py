"""A profile accounts for the whole step, and its bytes are those of the model."""

import pytest
from support.tiny import build_llama

import openhearth
from openhearth.bench import Yardsticks, profile_steps
from openhearth.bench.profile import REST


@pytest.fixture(scope="module")
def profiles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("profile")
    build_llama(folder, max_position_embeddings=1024)
    model = openhearth.load(str(folder), dtype="float32")
    return model, {step.work: step for step in profile_steps(model, Yardsticks(1e10, 1e11))}


def test_times_of_the_kernels_add_up_to_that_of_the_step(profiles):
    for step in profiles[1].values():
        assert sum(kernel.seconds for kernel in step.kernels) == pytest.approx(step.seconds)
        assert all(kernel.seconds > 0 for kernel in step.kernels)
        assert step.kernels[-1].name == REST


def test_bytes_and_operations_are_those_of_the_model(profiles):
    model, steps = profiles
    spec = model.spec
    assert set(steps) == {"decode", "prefill_512", "decode_64"}
    decode = {kernel.name: kernel for kernel in steps["decode"].kernels}
    assert decode["logits"].num_bytes == spec.vocab_size * spec.hidden_size * 4
    assert decode["logits"].flops == 2 * spec.vocab_size * spec.hidden_size
    for step, rows in ((steps["decode"], 1), (steps["decode_64"], 64)):
        flops = sum(kernel.flops for kernel in step.kernels)
        assert flops == pytest.approx(rows * spec.flops_per_token(step.context_tokens), rel=0.1)
    linear = [kernel for kernel in steps["prefill_512"].kernels if kernel.name.startswith("linear")]
    assert sum(kernel.flops for kernel in linear) == 512 * (
        spec.flops_per_token(0) - 2 * spec.vocab_size * spec.hidden_size)


def test_the_limit_is_the_longer_of_reading_and_multiplying(profiles):
    for step in profiles[1].values():
        for kernel in step.kernels[:-1]:
            assert kernel.limit_s >= max(kernel.num_bytes / 1e10, kernel.flops / 1e11) * (1 - 1e-9)
            assert kernel.share_of_limit == pytest.approx(kernel.limit_s / kernel.seconds)
