"""Llama against transformers (fp32, CPU): logits within 1e-4 for every option, gradients too."""

import json
from dataclasses import replace

import pytest
import torch
from support.packs import PagedRunner, run_whole
from support.tiny import build_gguf, build_llama

from openhearth.formats import open_checkpoint
from openhearth.kernels.attention import AttnInput
from openhearth.models import load_model
from openhearth.spec import read_spec

TOLERANCE = 1e-4
NUM_TOKENS = 300


def rope(kind, **parameters):
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **parameters}}


YARN = {"factor": 4.0, "original_max_position_embeddings": 128}
CASES = {
    "gqa": {},
    "mha": {"num_key_value_heads": 4},
    "mqa": {"num_key_value_heads": 1},
    "tied": {"tie_word_embeddings": True},
    "attention_bias": {"attention_bias": True},
    "mlp_bias": {"mlp_bias": True},
    "head_dim": {"head_dim": 32},
    "eps_and_theta": {"rms_norm_eps": 0.05, **rope("default") | {"rope_parameters": {"rope_theta": 500000.0,
                                                                                   "rope_type": "default"}}},
    "linear": rope("linear", factor=4.0),
    "linear_beyond_original": {"max_position_embeddings": 64, **rope("linear", factor=4.0)},
    "dynamic_within_original": rope("dynamic", factor=4.0),
    "llama3": rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                   original_max_position_embeddings=64),
    "yarn": rope("yarn", **YARN),
    "yarn_mscale": rope("yarn", **YARN, mscale=0.7, mscale_all_dim=1.3),
    "yarn_mscale_alone": rope("yarn", **YARN, mscale=0.7),
    "yarn_attention_factor": rope("yarn", **YARN, attention_factor=1.5),
    "yarn_not_truncated": rope("yarn", **YARN, truncate=False, beta_fast=16.0, beta_slow=2.0),
}
UNSCALED = {"gqa", "dynamic_within_original"}


@pytest.fixture(scope="module")
def token_ids():
    return torch.randint(0, 512, (NUM_TOKENS,), generator=torch.Generator().manual_seed(1))


def load(path, dtype=torch.float32, **kwargs):
    checkpoint = open_checkpoint(path)
    return load_model(checkpoint, read_spec(checkpoint), dtype=dtype, **kwargs)


def logits_of(model, token_ids):
    with torch.inference_mode():
        return model.logits(run_whole(model, token_ids))


@pytest.mark.parametrize("name", CASES)
def test_logits_equal_those_of_transformers(name, tmp_path, token_ids):
    reference = build_llama(tmp_path, with_tokenizer=False, **CASES[name])
    model = load(tmp_path)
    assert model.spec.num_parameters == reference.num_parameters()
    with torch.no_grad():
        want = reference(token_ids[None]).logits[0]
    got = logits_of(model, token_ids)
    assert got.dtype == torch.float32
    assert (got - want).abs().max() <= TOLERANCE
    if name not in UNSCALED and "rope_parameters" in CASES[name]:
        config = json.loads((tmp_path / "config.json").read_text())
        config["rope_parameters"] = {"rope_type": "default", "rope_theta": 10000.0}
        (tmp_path / "config.json").write_text(json.dumps(config))
        unscaled = logits_of(load(tmp_path), token_ids)
        assert (unscaled - want).abs().max() > 100 * TOLERANCE, "the option does nothing"


def test_bf16_is_as_close_to_fp32_as_transformers_is(tmp_path, token_ids):
    """Root mean square error against fp32 with the same rounded weights."""
    reference = build_llama(tmp_path, with_tokenizer=False, dtype="bfloat16")
    got = logits_of(load(tmp_path, torch.bfloat16), token_ids)
    with torch.no_grad():
        exact = reference(token_ids[None]).logits[0]
        theirs = reference.bfloat16()(token_ids[None]).logits[0].float()
    error, their_error = ((x - exact).square().mean().sqrt() for x in (got, theirs))
    assert 0 < error <= 1.1 * their_error
    assert error < 0.02 * exact.std()


def test_dynamic_rope_beyond_its_context_equals_transformers_token_by_token(tmp_path, token_ids):
    """However the prompt is cut: whole, in chunks, token by token."""
    reference = build_llama(tmp_path, with_tokenizer=False, max_position_embeddings=64,
                            **rope("dynamic", factor=4.0))
    model = load(tmp_path)
    ids = token_ids[:160].tolist()
    want, past = [], None
    with torch.no_grad():
        for token in ids:
            out = reference(torch.tensor([[token]]), past_key_values=past, use_cache=True)
            past = out.past_key_values
            want.append(out.logits[0, -1])
        whole = reference(torch.tensor([ids])).logits[0]
    want = torch.stack(want)
    assert (whole - want).abs().max() > 100 * TOLERANCE, "transformers' whole prompt uses one length for all"
    for size in (160, 50, 1):
        runner = PagedRunner(model)
        hidden = torch.cat([runner.step({0: ids[i:i + size]})[0] for i in range(0, 160, size)])
        assert (model.logits(hidden) - want).abs().max() <= TOLERANCE, f"chunks of {size}"


def test_gradients_equal_those_of_transformers(tmp_path, token_ids):
    """Two packed sequences; loss on next tokens."""
    reference = build_llama(tmp_path, with_tokenizer=False, attention_bias=True, mlp_bias=True)
    model = load(tmp_path, is_trainable=True)
    lengths = (70, 50)
    ids = token_ids[:120]
    positions = torch.cat([torch.arange(length) for length in lengths])
    hidden = model(ids, positions, AttnInput.without_cache(lengths))
    loss = torch.zeros(())
    want_loss = torch.zeros(())
    start = 0
    for length in lengths:
        part = ids[start:start + length]
        ours = model.logits(hidden[start:start + length - 1])
        loss = loss + torch.nn.functional.cross_entropy(ours, part[1:])
        theirs = reference(part[None]).logits[0, :-1]
        want_loss = want_loss + torch.nn.functional.cross_entropy(theirs, part[1:])
        start += length
    loss.backward()
    want_loss.backward()
    assert abs(loss.item() - want_loss.item()) < 1e-5
    want = dict(reference.named_parameters())
    assert want.keys() == dict(model.named_parameters()).keys()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, want[name].grad, rtol=1e-3, atol=1e-5, msg=name)


def test_gradient_of_a_tied_matrix_sums_both_uses(tmp_path, token_ids):
    reference = build_llama(tmp_path, with_tokenizer=False, tie_word_embeddings=True)
    model = load(tmp_path, is_trainable=True)
    ids = token_ids[:40]
    torch.nn.functional.cross_entropy(model.logits(run_whole(model, ids[:-1])), ids[1:]).backward()
    torch.nn.functional.cross_entropy(reference(ids[None, :-1]).logits[0], ids[1:]).backward()
    torch.testing.assert_close(model.model.embed_tokens.weight.grad, reference.model.embed_tokens.weight.grad,
                               rtol=1e-3, atol=1e-5)
    assert "lm_head.weight" not in model.state_dict()


@pytest.mark.parametrize("is_tied", [True, False], ids=["tied", "separate"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_a_model_that_learns_computes_the_same_bits_as_one_that_serves(dtype, is_tied, tmp_path, token_ids):
    build_llama(tmp_path, with_tokenizer=False, tie_word_embeddings=is_tied, attention_bias=True)
    serving, learning = load(tmp_path, dtype), load(tmp_path, dtype, is_trainable=True)
    hidden = run_whole(learning, token_ids)
    assert hidden.requires_grad
    with torch.no_grad():
        assert torch.equal(run_whole(serving, token_ids), hidden)
        assert torch.equal(serving.logits(hidden), learning.logits(hidden))


def test_sharded_safetensors_give_the_same_logits(tmp_path, token_ids):
    reference = build_llama(tmp_path / "whole", with_tokenizer=False)
    reference.save_pretrained(tmp_path / "shards", max_shard_size="200KB")
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 1
    whole, shards = (logits_of(load(tmp_path / name), token_ids) for name in ("whole", "shards"))
    assert torch.equal(whole, shards)


@pytest.mark.parametrize("name", ["gqa", "mha", "tied", "attention_bias", "mlp_bias", "head_dim"])
def test_gguf_gives_the_same_weights_as_safetensors(name, tmp_path):
    build_llama(tmp_path, with_tokenizer=False, **CASES[name])
    ours = load(build_gguf(tmp_path, tmp_path / "m.gguf"), is_trainable=True)
    theirs = load(tmp_path, is_trainable=True)
    # GGUF keeps this number in float32.
    assert ours.spec.rms_norm_eps == pytest.approx(theirs.spec.rms_norm_eps, rel=1e-7)
    assert replace(ours.spec, rms_norm_eps=theirs.spec.rms_norm_eps) == theirs.spec
    for (name, tensor), want in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        assert torch.equal(tensor, want), name


def test_gguf_yarn_equals_transformers_with_the_same_settings(tmp_path, token_ids):
    reference = build_llama(tmp_path, with_tokenizer=False, **CASES["yarn"])
    model = load(build_gguf(tmp_path, tmp_path / "m.gguf", metadata={
        "llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0,
        "llama.rope.scaling.original_context_length": 128}))
    with torch.no_grad():
        assert (logits_of(model, token_ids) - reference(token_ids[None]).logits[0]).abs().max() <= TOLERANCE


def test_gguf_rotary_factors_equal_llama3_scaling(tmp_path, token_ids):
    """GGUF stores llama3 scaling as divisors of the frequencies."""
    reference = build_llama(tmp_path, with_tokenizer=False, **CASES["llama3"])
    rotary = reference.model.rotary_emb
    unscaled, _ = rotary.compute_default_rope_parameters(reference.config)
    model = load(build_gguf(tmp_path, tmp_path / "m.gguf", rope_factors=(unscaled / rotary.inv_freq).numpy()),
                 dtype=torch.float32)
    assert model.spec.rope.type == "factors"
    with torch.no_grad():
        assert (logits_of(model, token_ids) - reference(token_ids[None]).logits[0]).abs().max() <= TOLERANCE
    half = load(tmp_path / "m.gguf", dtype=torch.bfloat16)
    assert half.rope_factors.dtype == torch.float32, "rounded factors would turn distant heads wrongly"


@pytest.mark.parametrize("quant", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_quantised_gguf_equals_transformers_loading_the_same_file(quant, tmp_path, token_ids):
    from transformers import AutoModelForCausalLM

    build_llama(tmp_path, with_tokenizer=False)
    path = build_gguf(tmp_path, tmp_path / "m.gguf", quant)
    reference = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", dtype=torch.float32)
    with torch.no_grad():
        want = reference(token_ids[None]).logits[0]
    assert (logits_of(load(path), token_ids) - want).abs().max() <= TOLERANCE
