"""Rotary embedding against transformers' own frequencies and rotation."""

import pytest
import torch

from openhearth.kernels.rope.reference import RotationTable, apply_rope, compute_rotation, inverse_frequencies
from openhearth.spec import RopeSpec


def theirs(head_dim=64, max_position=4096, **parameters):
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    return LlamaRotaryEmbedding(LlamaConfig(
        hidden_size=head_dim, num_attention_heads=1, max_position_embeddings=max_position,
        rope_parameters={"rope_theta": 10000.0, **parameters}))


CASES = {
    "default": (RopeSpec(), {"rope_type": "default"}),
    "linear": (RopeSpec("linear", factor=4.0), {"rope_type": "linear", "factor": 4.0}),
    "llama3": (RopeSpec("llama3", factor=8.0, original_max_position=1024, low_freq_factor=1.0,
                        high_freq_factor=4.0),
               {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 1024,
                "low_freq_factor": 1.0, "high_freq_factor": 4.0}),
    "yarn": (RopeSpec("yarn", factor=4.0, original_max_position=1024),
             {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}),
    "yarn_mscale": (RopeSpec("yarn", factor=4.0, original_max_position=1024, mscale=0.7, mscale_all_dim=1.3),
                    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024,
                     "mscale": 0.7, "mscale_all_dim": 1.3}),
    "yarn_options": (RopeSpec("yarn", factor=4.0, original_max_position=1024, attention_factor=1.4,
                              truncate=False, beta_fast=20.0, beta_slow=2.0),
                     {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024,
                      "attention_factor": 1.4, "truncate": False, "beta_fast": 20.0, "beta_slow": 2.0}),
}


@pytest.mark.parametrize("name", CASES)
def test_frequencies_and_angles_equal_those_of_transformers(name):
    spec, parameters = CASES[name]
    reference = theirs(**parameters)
    frequencies = inverse_frequencies(spec, 64)
    torch.testing.assert_close(frequencies, reference.inv_freq, rtol=1e-6, atol=0)
    if name != "default":
        changed = reference.attention_scaling != 1.0
        assert changed or not torch.allclose(reference.inv_freq, inverse_frequencies(RopeSpec(), 64))
    positions = torch.arange(256)
    rotation = compute_rotation(spec, frequencies, positions)
    cos, sin = reference(torch.zeros(1), positions[None])
    torch.testing.assert_close(rotation.cos_T1E[:, 0], cos[0], rtol=0, atol=1e-4)
    torch.testing.assert_close(rotation.sin_T1E[:, 0].abs(), sin[0].abs(), rtol=0, atol=1e-4)


def test_heads_are_turned_as_transformers_turns_them():
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    torch.manual_seed(0)
    positions = torch.tensor([0, 1, 5, 900])
    q, k = torch.randn(4, 3, 64), torch.randn(4, 1, 64)
    cos, sin = theirs(rope_type="default")(q, positions[None])
    want_q, want_k = apply_rotary_pos_emb(q[None], k[None], cos, sin, unsqueeze_dim=2)
    rotation = compute_rotation(RopeSpec(), inverse_frequencies(RopeSpec(), 64), positions)
    torch.testing.assert_close(apply_rope(q, rotation), want_q[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(apply_rope(k, rotation), want_k[0], rtol=0, atol=1e-6)
    half = apply_rope(q.bfloat16(), rotation)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half, apply_rope(q.bfloat16().float(), rotation).bfloat16(), rtol=0, atol=0)


def test_dynamic_frequencies_depend_on_each_position_alone():
    spec = RopeSpec("dynamic", factor=4.0, original_max_position=128)
    frequencies = inverse_frequencies(spec, 64)
    together = compute_rotation(spec, frequencies, torch.arange(400))
    for position in (0, 127, 128, 129, 399):
        alone = compute_rotation(spec, frequencies, torch.tensor([position]))
        assert torch.equal(alone.cos_T1E[0], together.cos_T1E[position])
        cos, _ = theirs(max_position=128, rope_type="dynamic", factor=4.0)(
            torch.zeros(1), torch.tensor([[position]]))
        torch.testing.assert_close(alone.cos_T1E[0], cos[0], rtol=0, atol=1e-4)


def test_stored_factors_divide_the_frequencies():
    factors = torch.linspace(1, 8, 32)
    torch.testing.assert_close(inverse_frequencies(RopeSpec("factors"), 64, factors),
                               inverse_frequencies(RopeSpec(), 64) / factors)


@pytest.mark.parametrize("head_dim", [16, 34, 64])
@pytest.mark.parametrize("spec", [RopeSpec(), RopeSpec("dynamic", factor=4.0, original_max_position=128)],
                         ids=lambda spec: spec.type)
def test_angles_of_a_position_have_the_same_bits_in_every_pack(spec, head_dim):
    frequencies = inverse_frequencies(spec, head_dim)
    whole = compute_rotation(spec, frequencies, torch.arange(2100))
    packs = [(position, position + 1) for position in range(0, 2100, 13)]
    packs += [(11, 11 + length) for length in (2, 3, 5, 17, 100, 1000)]
    for start, stop in packs:
        part = compute_rotation(spec, frequencies, torch.arange(start, stop))
        assert torch.equal(part.cos_T1E, whole.cos_T1E[start:stop])
        assert torch.equal(part.sin_T1E, whole.sin_T1E[start:stop])


@pytest.mark.parametrize("name", [*CASES, "dynamic"])
def test_a_table_has_the_bits_of_computed_angles_while_it_grows(name):
    spec = CASES[name][0] if name in CASES else RopeSpec("dynamic", factor=4.0, original_max_position=128)
    frequencies = inverse_frequencies(spec, 64)
    table = RotationTable(spec, frequencies, 2000)
    handed_out = []
    for positions in (torch.tensor([0]), torch.tensor([511, 3, 3]), torch.arange(500, 520),
                      torch.tensor([1999]), torch.tensor([2500])):
        found = table.rotation(positions, int(positions.max()) + 1)
        handed_out.append((positions, found))
        assert found.positions_T is not None and found.cos_T1E.shape[0] > positions.max()
    assert [len(found.cos_T1E) for _, found in handed_out] == [512, 512, 1024, 2000, 2501]
    for positions, found in handed_out:
        want = compute_rotation(spec, frequencies, positions)
        for got, wanted in zip(found.of_tokens()[:2], want[:2], strict=True):
            assert torch.equal(got, wanted)


def test_heads_whose_first_numbers_turn_keep_the_others():
    heads, positions = torch.randn(5, 2, 48), torch.arange(5)
    rotation = compute_rotation(RopeSpec(), inverse_frequencies(RopeSpec(), 32), positions)
    turned = apply_rope(heads, rotation)
    assert torch.equal(turned[..., 32:], heads[..., 32:])
    assert torch.equal(turned[..., :32], apply_rope(heads[..., :32].contiguous(), rotation))
