"""Mistral's models with vision (`mistral3`): without images they answer as transformers' whole does."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.packs import run_whole

from openhearth.errors import BadFile, Unsupported
from openhearth.formats import open_checkpoint
from openhearth.models import load_model
from openhearth.spec import choose_weights, read_spec

IDS = torch.randint(3, 250, (60,), generator=torch.Generator().manual_seed(1))
YARN = {"rope_type": "yarn", "rope_theta": 1000000.0, "factor": 16.0, "original_max_position_embeddings": 32,
        "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.5}
TEXTS = {
    "mistral": {"model_type": "mistral", "sliding_window": None},
    "mistral_tied": {"model_type": "mistral", "sliding_window": 20, "tie_word_embeddings": True},
    "ministral3": {"model_type": "ministral3", "rope_parameters": YARN},
}


def build_whole(folder, name):
    """A tiny model with vision, as transformers saves it, its norms and biases drawn."""
    from transformers import Mistral3Config, Mistral3ForConditionalGeneration

    vision = dict(model_type="pixtral", hidden_size=32, intermediate_size=64, num_hidden_layers=1,
                  head_dim=16, num_attention_heads=2, image_size=28, patch_size=14)
    shape = dict(vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=2, head_dim=32,
                 num_attention_heads=4, num_key_value_heads=2)
    torch.manual_seed(0)
    config = Mistral3Config(text_config=shape | TEXTS[name], vision_config=vision, image_token_index=255,
                            tie_word_embeddings=name.endswith("tied"))
    config._attn_implementation = "eager"
    model = Mistral3ForConditionalGeneration(config).eval()
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.1)
    model.save_pretrained(folder)
    return model


def load(path):
    checkpoint = open_checkpoint(path)
    return load_model(checkpoint, read_spec(checkpoint), dtype=torch.float32)


@pytest.mark.parametrize("name", TEXTS)
def test_the_text_part_answers_as_the_whole_does(name, tmp_path):
    reference = build_whole(tmp_path, name)
    model = load(tmp_path)
    with torch.inference_mode():
        want_TV, got_TV = reference(IDS[None]).logits[0], model.logits(run_whole(model, IDS))
    assert (got_TV - want_TV).abs().max() <= 1e-4
    assert model.spec.model_type == TEXTS[name]["model_type"]
    num_text = sum(one.numel() for one in reference.model.language_model.parameters())
    assert model.spec.num_parameters == num_text + (0 if model.spec.is_tied else 256 * 64)
    chosen = choose_weights("float32", "auto", open_checkpoint(tmp_path), model.spec, has_native=True)
    assert chosen.num_bytes < 4 * model.spec.num_parameters * 1.1, "the tensors of images take no memory"


def test_a_file_with_an_output_matrix_is_not_tied_whatever_its_configuration_leaves_out(tmp_path):
    """Mistral's own files say nothing of it; transformers' default is that they are tied."""
    build_whole(tmp_path, "mistral")
    want = load(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for one in (config, config["text_config"]):
        one.pop("tie_word_embeddings", None)
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = load(tmp_path)
    assert not found.spec.is_tied
    assert torch.equal(found.logits(torch.ones(1, 64)), want.logits(torch.ones(1, 64)))


def test_an_output_matrix_that_should_be_there_is_missed(tmp_path):
    build_whole(tmp_path, "mistral")
    tensors = load_file(tmp_path / "model.safetensors")
    head = next(name for name in tensors if "lm_head" in name)
    save_file({name: one for name, one in tensors.items() if name != head}, tmp_path / "model.safetensors")
    with pytest.raises(BadFile, match=r"lm_head\.weight"):
        load(tmp_path)


@pytest.mark.parametrize(("changes", "text", "message"), [
    ({"audio_config": {"a": 1}}, {}, "`audio_config`"), ({}, {"model_type": "mistral4"}, "mistral4")])
def test_what_is_neither_text_nor_vision_is_refused_by_name(changes, text, message, tmp_path):
    build_whole(tmp_path, "mistral")
    config = json.loads((tmp_path / "config.json").read_text())
    config = config | changes | {"text_config": config["text_config"] | text}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(Unsupported, match=message):
        read_spec(open_checkpoint(tmp_path))
