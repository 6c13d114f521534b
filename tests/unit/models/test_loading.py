"""Loading: what does not fit is refused by name before a weight is read; what fits is loaded as told."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.tiny import build_gguf, build_llama

from openhearth.errors import BadFile, Unsupported, UsageError
from openhearth.formats import open_checkpoint
from openhearth.kernels.attention import AttnInput
from openhearth.kernels.lora import AdapterRows
from openhearth.models import find_architecture, load_model
from openhearth.models.linear import Embedding, Linear
from openhearth.models.lora import AdapterWeights, attach
from openhearth.spec import read_spec, weight_bytes

EMBEDDING = "model.embed_tokens.weight"
UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def folder(tmp_path):
    build_llama(tmp_path, with_tokenizer=False)
    return tmp_path


def load(path, dtype=torch.float32, **kwargs):
    checkpoint = open_checkpoint(path)
    return load_model(checkpoint, read_spec(checkpoint), dtype=dtype, **kwargs)


def rewrite(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def set_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(("change", "names"), [
    (lambda t: t.pop(UP), [f"`{UP}` is missing"]),
    (lambda t: t.update(extra=torch.zeros(2)), ["`extra` is not part of the model"]),
    (lambda t: t.update({UP: torch.zeros(128, 63)}), [f"`{UP}`", "[128, 63]", "[128, 64]"]),
    (lambda t: t.update({UP: torch.zeros(64, 128)}), ["[64, 128]", "[128, 64]"]),
    (lambda t: t.update({"model.layers.2.mlp.up_proj.weight": torch.zeros(128, 64)}), ["layers.2"]),
    (lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": torch.zeros(64)}), ["q_proj.bias"]),
    (lambda t: t.clear() or t.update(x=torch.zeros(1)), [EMBEDDING, "and 16 more"]),
])
def test_tensors_that_do_not_fit_are_refused_before_weights_are_read(folder, monkeypatch, change, names):
    rewrite(folder, change)
    read = []
    monkeypatch.setattr("openhearth.models.sources.map_tensor", read.append)
    with pytest.raises(BadFile) as raised:
        load(folder)
    assert all(name in str(raised.value) for name in names), str(raised.value)
    assert "hint:" in str(raised.value)
    assert read == []


def test_gguf_tensors_are_refused_by_their_own_names(folder):
    set_config(folder, num_hidden_layers=2)
    path = build_gguf(folder, folder / "m.gguf", metadata={"llama.block_count": 3})
    with pytest.raises(BadFile, match=r"`blk\.2\.attn_q\.weight` is missing"):
        load(path)
    path = build_gguf(folder, folder / "m.gguf", metadata={"llama.block_count": 1})
    with pytest.raises(BadFile, match=r"`blk\.1\.attn_k\.weight` is not part of the model"):
        load(path)


def test_stored_types_that_are_not_plain_numbers_are_refused_by_name(folder):
    rewrite(folder, lambda t: t.update({UP: t[UP].to(torch.float8_e4m3fn)}))
    with pytest.raises(Unsupported, match="F8_E4M3"):
        load(folder)
    rewrite(folder, lambda t: t.update({UP: t[UP].float().to(torch.int32)}))
    with pytest.raises(Unsupported, match="I32"):
        load(folder)


def test_unknown_architectures_are_refused_by_name(folder):
    checkpoint = open_checkpoint(folder)
    with pytest.raises(Unsupported, match="`mamba`") as raised:
        load_model(checkpoint, replace(read_spec(checkpoint), model_type="mamba"), dtype=torch.float32)
    assert "llama" in str(raised.value)
    set_config(folder, model_type="mamba2")
    with pytest.raises(Unsupported, match="`mamba2`"):
        load(folder)


def test_every_row_of_the_table_has_a_file_with_its_forward():
    from openhearth.spec.architectures import ROWS

    assert {"llama", "qwen3"} <= ROWS.keys()
    for model_type, row in ROWS.items():
        assert row.model_type == model_type
        assert issubclass(find_architecture(model_type).build, torch.nn.Module)


def test_old_rotary_buffers_are_ignored(folder):
    before = load(folder, is_trainable=True).state_dict()
    rewrite(folder, lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(8)}))
    assert before.keys() == load(folder, is_trainable=True).state_dict().keys()


def test_a_repeated_tied_matrix_must_be_the_same_one(tmp_path):
    build_llama(tmp_path, with_tokenizer=False, tie_word_embeddings=True)
    rewrite(tmp_path, lambda t: t.update({"lm_head.weight": t[EMBEDDING].clone()}))
    assert "lm_head.weight" not in load(tmp_path).state_dict()
    rewrite(tmp_path, lambda t: t.update({"lm_head.weight": t[EMBEDDING] + 1}))
    with pytest.raises(BadFile, match=r"`lm_head\.weight` differs"):
        load(tmp_path)


@pytest.mark.parametrize("stored", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_are_the_stored_numbers_in_the_wanted_dtype(tmp_path, stored, dtype):
    build_llama(tmp_path, with_tokenizer=False, dtype=stored)
    model = load(tmp_path, dtype, is_trainable=True)
    assert model.spec.dtype == stored
    assert model.dtype == dtype and not model.training
    want = load_file(tmp_path / "model.safetensors")
    assert model.state_dict().keys() == want.keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, want[name].to(dtype)), name


@pytest.mark.parametrize("quant", ["Q8_0", "Q4_0", "Q4_1"])
@pytest.mark.parametrize("is_tied", [False, True], ids=["untied", "tied"])
def test_stored_blocks_are_held_as_they_are_and_compute_what_they_mean(tmp_path, quant, is_tied):
    build_llama(tmp_path, with_tokenizer=False, tie_word_embeddings=is_tied)
    path = build_gguf(tmp_path, tmp_path / "m.gguf", quant)
    model = load(path, torch.bfloat16, weights="stored")
    dequantised = load(path, is_trainable=True)
    linears = {name: module for name, module in model.named_modules() if isinstance(module, Linear)}
    assert len(linears) == 14 + (not is_tied)
    for name, module in linears.items():
        assert module.packed.format == quant and module.weight is None
        want = dequantised.get_submodule(name).weight
        assert torch.equal(module.packed.unpack(torch.float32), want), name
    assert model.model.embed_tokens.packed.format == quant and model.model.embed_tokens.weight is None
    table = model.model.embed_tokens.packed.unpack(torch.float32)
    assert torch.equal(table, dequantised.model.embed_tokens.weight)
    checkpoint = open_checkpoint(path)
    held = sum(packed.packed.nbytes for packed in [module.packed for module in linears.values()]
               + [model.model.embed_tokens.packed]) + sum(p.nbytes for p in model.state_dict().values())
    assert held == weight_bytes(checkpoint, read_spec(checkpoint), "stored")


@pytest.mark.parametrize(("weights", "formats"), [("int8", {"Q8_0"}), ("int4", {"Q4_1", "Q8_0"})])
def test_plain_weights_are_quantised_on_request(folder, weights, formats):
    model = load(folder, torch.bfloat16, weights=weights)
    want = load_file(folder / "model.safetensors")
    found = {name: module.packed for name, module in model.named_modules()
             if isinstance(module, Linear | Embedding)}
    assert {packed.format for packed in found.values()} == formats
    assert found["lm_head"].format == found["model.embed_tokens"].format == "Q8_0"
    for name, packed in found.items():
        error = (packed.unpack(torch.float32) - want[f"{name}.weight"]).square().mean().sqrt()
        assert error < (0.0012 if packed.format == "Q8_0" else 0.014), name  # weights of size 0.1
    checkpoint = open_checkpoint(folder)
    held = sum(packed.packed.nbytes for packed in found.values())
    held += sum(parameter.nbytes for parameter in model.state_dict().values())
    assert held == weight_bytes(checkpoint, read_spec(checkpoint), weights)


@pytest.mark.parametrize(("kwargs", "text"), [
    ({"dtype": torch.float32, "weights": "int8"}, "native kernels and bfloat16"),
    ({"dtype": torch.bfloat16, "weights": "float32"}, "`float32`"),
    ({"dtype": torch.bfloat16, "weights": "int4", "is_trainable": True}, "cannot learn"),
])
def test_forms_that_do_not_go_together_are_refused(folder, kwargs, text):
    with pytest.raises(UsageError, match=text):
        load(folder, **kwargs)


def test_an_adapter_learns_on_a_quantised_base(folder):
    model = load(folder, torch.bfloat16, weights="int4")
    generator = torch.Generator().manual_seed(0)
    a_RI, b_OR = torch.randn(4, 64, generator=generator) * 0.1, torch.randn(64, 4, generator=generator) * 0.1
    name = "model.layers.0.self_attn.q_proj"
    attach(model, "task", AdapterWeights({name: (a_RI, b_OR)}, scale=1.0), is_trainable=True)
    ids = torch.arange(12)
    hidden = model(ids, torch.arange(12), AttnInput.without_cache((12,)), AdapterRows(((0, 12, 0),)))
    torch.nn.functional.cross_entropy(model.logits(hidden)[:-1], ids[1:]).backward()
    pair = model.get_submodule(name).lora[0]
    grads = [parameter.grad for parameter in pair.parameters()]
    assert len(grads) == 2 and all(grad.isfinite().all() and grad.abs().max() > 0 for grad in grads)


def test_loaded_weights_do_not_change_with_the_file(folder):
    model = load(folder, is_trainable=True)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    path = folder / "model.safetensors"
    with path.open("r+b") as file:
        file.seek(-4096, 2)
        file.write(b"\0" * 4096)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_progress_counts_up_to_all_bytes(folder):
    calls = []
    load(folder, on_progress=lambda done, total: calls.append((done, total)))
    total = sum(entry.num_bytes for entry in open_checkpoint(folder).tensors.values())
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)
    assert calls[-1] == (total, total) and {each for _, each in calls} == {total}


def test_peak_memory_stays_near_the_final_weights(tmp_path):
    """A fresh process loads 79 MB of weights and may need 48 MiB beside them, mapped pages included."""
    import os
    import subprocess
    import sys
    from pathlib import Path

    build_llama(tmp_path, with_tokenizer=False, dtype="float32", hidden_size=512, num_hidden_layers=6,
                intermediate_size=1536, vocab_size=2048, num_attention_heads=8)
    path = build_gguf(tmp_path, tmp_path / "m.gguf", "Q4_1")
    code = """
import resource, sys, torch
from pathlib import Path
from openhearth.formats import open_checkpoint
from openhearth.models import load_model
from openhearth.spec import read_spec
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
checkpoint = open_checkpoint(Path(sys.argv[1]))
spec = read_spec(checkpoint)
torch.ones(64, 64) @ torch.ones(64, 64)
before = peak()
model = load_model(checkpoint, spec, dtype=torch.float32)
print(peak() - before, spec.num_parameters * 4)
"""
    source = str(Path(__file__).parents[3] / "src")
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": source, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code, str(path)], env=env, capture_output=True, text=True,
                          check=True)
    grown, weights = map(int, done.stdout.split())
    assert weights > 75_000_000
    assert grown <= weights + (48 << 20)
