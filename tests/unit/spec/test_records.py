"""Arithmetic of a spec against published numbers."""

import pytest

from openhearth.spec import ModelSpec, RopeSpec

REST = {"rms_norm_eps": 1e-5, "rope": RopeSpec(theta=500000.0), "has_attention_bias": False,
        "has_mlp_bias": False, "dtype": "bfloat16"}
LLAMA_3_8B = ModelSpec("llama", 128256, 4096, 32, 32, 8, 128, 14336, 8192, is_tied=False, **REST)
LLAMA_31_405B = ModelSpec("llama", 128256, 16384, 126, 128, 8, 128, 53248, 131072, is_tied=False, **REST)
SMOLLM2_135M = ModelSpec("llama", 49152, 576, 30, 9, 3, 64, 1536, 8192, is_tied=True, **REST)


@pytest.mark.parametrize(("spec", "num_parameters"), [
    (LLAMA_3_8B, 8_030_261_248), (LLAMA_31_405B, 405_853_388_800), (SMOLLM2_135M, 134_515_008)])
def test_number_of_parameters_is_the_published_one(spec, num_parameters):
    assert spec.num_parameters == num_parameters


@pytest.mark.parametrize(("spec", "kv_bytes"), [(LLAMA_3_8B, 131_072), (LLAMA_31_405B, 516_096)])
def test_cache_bytes_per_token_are_the_published_ones(spec, kv_bytes):
    assert spec.kv_bytes_per_token() == kv_bytes
    assert spec.kv_bytes_per_token(4) == 2 * kv_bytes
    assert spec.kv_bytes_per_token(0.5) == kv_bytes // 4


def test_operations_per_token_are_those_counted_by_torch(tmp_path):
    import torch
    from support.tiny import build_llama
    from torch.utils.flop_counter import FlopCounterMode

    from openhearth.formats import open_checkpoint
    from openhearth.spec import read_spec

    model = build_llama(tmp_path, with_tokenizer=False, attn_implementation="eager")
    spec = read_spec(open_checkpoint(tmp_path))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.arange(100)[None])
    # The counted forward multiplies all 100 x 100 pairs, masked ones included.
    assert counter.get_total_flops() == pytest.approx(100 * spec.flops_per_token(100), rel=1e-3)
