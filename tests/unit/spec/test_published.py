"""Counts from the configurations of real models, against what their publishers say.

`tests/references/published_models.json`: the values of each `config.json` that say something of the shape,
the number of parameters that its page gives, and the cache bytes of a token in bfloat16 that follow; entered
by hand, without a hub at hand to fetch them from. Where `num_stored` is given, it is the hub's own count of
the numbers in the checkpoint's files, and `num_parameters` what is left of it by the arithmetic of
`numbers_in_files`. Active parameters are published rounded, and not counted alike: `active_without` names the
tables that a publisher leaves out. GLM-4.5's 355 billion are its layers and the one that predicts further
tokens, without tables; Kimi K2's paper says 1.04 trillion of what its files hold 1.026 trillion of.
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from openhearth.errors import Unsupported
from openhearth.formats import open_checkpoint
from openhearth.formats.records import Checkpoint
from openhearth.spec import read_spec

REFERENCES = Path(__file__).parents[2] / "references"
MODELS = json.loads((REFERENCES / "published_models.json").read_text())
WHOLE = json.loads((REFERENCES / "whole_configs.json").read_text())


def spec_of(name):
    return read_spec(Checkpoint(Path(name), "safetensors", (), {}, MODELS[name]["config"], {}))


@pytest.mark.parametrize("name", WHOLE)
def test_a_folder_with_the_whole_configuration_is_opened_and_read(name, tmp_path):
    """With every key that publishers and trainers leave in the file, not only those of the shape.

    `whole_configs.json`, entered by hand without a hub to fetch from; the long factors of Phi-4-mini stand
    for others.
    """
    (tmp_path / "config.json").write_text(json.dumps(WHOLE[name]))
    save_file({"model.norm.weight": torch.ones(8)}, tmp_path / "model.safetensors")
    spec = read_spec(open_checkpoint(tmp_path))
    if name in MODELS:
        assert spec == replace(spec_of(name), max_position=spec.max_position)


def test_the_r1_distil_of_qwen3_does_not_scale_its_angles():
    """Its makers' factor undoes that of yarn; transformers has no such key."""
    config = WHOLE["deepseek-ai/DeepSeek-R1-0528-Qwen3-8B"]
    spec = read_spec(Checkpoint(Path("r1"), "safetensors", (), {}, config, {}))
    assert spec.rope.attention_factor == pytest.approx(1.0, abs=1e-12)
    plain = {**config, "rope_scaling": {**config["rope_scaling"], "attn_factor": None}}
    without = read_spec(Checkpoint(Path("r1"), "safetensors", (), {}, plain, {}))
    assert without.rope.attention_factor is None
    linear = {**config, "rope_scaling": {"rope_type": "linear", "factor": 4.0, "attn_factor": 0.9}}
    with pytest.raises(Unsupported, match="`attn_factor`"):
        read_spec(Checkpoint(Path("r1"), "safetensors", (), {}, linear, {}))
    both = {**config, "rope_scaling": {**config["rope_scaling"], "mscale": 0.7}}
    with pytest.raises(Unsupported, match="`mscale`"):
        read_spec(Checkpoint(Path("r1"), "safetensors", (), {}, both, {}))


@pytest.mark.parametrize("name", MODELS)
def test_parameters_and_cache_are_the_published_ones(name):
    spec = spec_of(name)
    published = MODELS[name]["num_parameters"]
    is_rounded = isinstance(published, float)
    assert spec.num_parameters == (pytest.approx(published, rel=1e-3) if is_rounded else published)
    assert spec.kv_bytes_per_token() == MODELS[name]["kv_bytes_per_token"]


@pytest.mark.parametrize("name", [name for name in MODELS if "num_active_parameters" in MODELS[name]])
def test_active_parameters_round_to_the_published_ones(name):
    spec, left_out = spec_of(name), MODELS[name].get("active_without", ())
    counted = spec.num_active_parameters - len(left_out) * spec.vocab_size * spec.hidden_size
    assert counted == pytest.approx(MODELS[name]["num_active_parameters"], rel=0.03)


def test_every_model_with_experts_that_names_its_active_parameters_is_compared():
    silent = {name for name in MODELS if spec_of(name).moe and "num_active_parameters" not in MODELS[name]}
    assert silent == set()


@pytest.mark.parametrize("name", [name for name in MODELS if "num_stored" in MODELS[name]])
def test_what_files_hold_besides_parameters_is_known_to_the_number(name):
    assert numbers_in_files(spec_of(name), MODELS[name]["config"]) == MODELS[name]["num_stored"]


def numbers_in_files(spec, config):
    """Parameters, corrections of the experts' scores, layers that predict further tokens, scales of FP8."""
    width, table = spec.hidden_size, spec.vocab_size * spec.hidden_size
    longer = replace(spec, num_layers=spec.num_layers + spec.num_extra_layers)
    # Such a layer is one of the model, a matrix that joins two rows, three norms, and copies of both tables.
    extra = spec.num_extra_layers * (2 * width * width + 3 * width + 2 * table)
    corrections = sum(longer.has_experts(layer) for layer in range(longer.num_layers)) * spec.moe.num_experts
    scales = 0
    if "quantization_config" in config:
        high, wide = config["quantization_config"]["weight_block_size"]
        scales = sum(-(-rows // high) * -(-columns // wide) for rows, columns in matrices_in_fp8(longer))
    return longer.num_parameters + extra + corrections + scales


def matrices_in_fp8(spec):
    """Yield the shapes of DeepSeek V3's matrices in FP8: all of its layers but the routers."""
    mla, width, heads = spec.mla, spec.hidden_size, spec.num_heads
    for layer in range(spec.num_layers):
        yield from [(mla.q_rank, width), (heads * (mla.nope_dim + mla.rope_dim), mla.q_rank),
                    (mla.kv_rank + mla.rope_dim, width),
                    (heads * (mla.nope_dim + mla.value_dim), mla.kv_rank), (width, heads * mla.value_dim)]
        for size in spec.feed_forwards(layer):
            yield from [(size, width), (size, width), (width, size)]
