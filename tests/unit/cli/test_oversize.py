"""What a model larger than memory costs at every token: reading what does not stay, and packing it."""

import pytest
from support.tiny import build_llama

from openhearth.cli.oversize import StepCost, cost_of_step, describe_quantising, describe_streaming, pack_rate
from openhearth.formats import open_checkpoint
from openhearth.kernels import select
from openhearth.spec import WeightChoice, choose_weights, read_spec, weight_bytes

is_native = pytest.mark.skipif(not select.chosen().is_native, reason="plain torch has packed weights only")


def test_the_prediction_grows_by_the_time_that_packing_takes(tmp_path):
    build_llama(tmp_path, with_tokenizer=False)
    spec = read_spec(open_checkpoint(tmp_path))
    weights = WeightChoice("bfloat16", "bfloat16", "", 10 * 10**9, resident_bytes=4 * 10**9)
    cost = cost_of_step(weights, spec, read_rate=2e9, pack_rate=1e9)
    assert cost == StepCost(6e9, 2e9, 1e9) and cost.seconds == 9.0
    assert cost_of_step(weights, spec, read_rate=2e9, pack_rate=5e8).seconds == 15.0


@is_native
@pytest.mark.parametrize("stored,format", [
    ("BF16", "BF16"), ("F32", "F32"), ("Q4_K", "Q4_K"), ("Q6_K", "BF16"), ("F16", "Q8_0"),
    ("F8_E4M3", "BF16"), ("MXFP4", "BF16")])
def test_packing_is_timed_for_what_the_file_has(stored, format):
    assert 1e6 < pack_rate(stored, format) < 1e12


@is_native
def test_quantising_again_at_every_step_is_slower_than_packing_alone():
    assert pack_rate("F32", "Q4_1") < pack_rate("Q4_1", "Q4_1")


@is_native
def test_the_sentence_says_both_rates(tmp_path):
    build_llama(tmp_path, with_tokenizer=False)
    checkpoint = open_checkpoint(tmp_path)
    weights = WeightChoice("bfloat16", "bfloat16", "", 10 * 10**9, resident_bytes=4 * 10**9)
    text = describe_streaming(weights, read_spec(checkpoint), checkpoint)
    assert "3.7 GiB stay in memory" in text and text.count("/s") == 2 and "and packed, at" in text


@is_native
def test_weights_that_are_quantised_to_fit_say_so_and_how_long_it_takes(tmp_path):
    build_llama(tmp_path, with_tokenizer=False)
    checkpoint = open_checkpoint(tmp_path)
    spec = read_spec(checkpoint)
    room = int(1.3 * weight_bytes(checkpoint, spec, "int8"))
    weights = choose_weights("auto", "bfloat16", checkpoint, spec, has_native=True, available_bytes=room)
    assert weights.is_reduced and weights.resident_bytes is None
    text = describe_quantising(weights, checkpoint)
    assert "weights become int8" in text and "bfloat16 needs" in text and "take about" in text
    ample = choose_weights("auto", "bfloat16", checkpoint, spec, has_native=True, available_bytes=10**9)
    assert not ample.is_reduced
