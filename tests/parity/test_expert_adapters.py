"""Adapters that PEFT puts beside stacked experts (`target_parameters`) answer here as they do there."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.families import all_cases, build

from openhearth.errors import UsageError
from openhearth.formats import open_checkpoint
from openhearth.kernels.attention.inputs import AttnInput
from openhearth.kernels.lora import AdapterRows
from openhearth.models import attach, load_model
from openhearth.models.adapter_files import WEIGHTS, read_adapter
from openhearth.spec import read_spec

IDS = torch.randint(3, 256, (40,), generator=torch.Generator().manual_seed(1))
NAMES = ["mixtral", "qwen2_moe", "qwen3_moe", "deepseek_v3", "glm4_moe", "gpt_oss"]
ALL = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
STACK = "base_model.model.model.layers.1.mlp.experts"


def peft_adapter(tmp_path, name, targets, **changes):
    """Write a model and an adapter of it; return the model's logits with it and without."""
    from peft import LoraConfig, get_peft_model

    case = all_cases()[name]
    if "moe_intermediate_size" in case.settings:
        changes = {"moe_intermediate_size": 48, **changes}
    base = build(tmp_path / "model", case, **changes)
    with torch.inference_mode():
        plain_TV = base(IDS[None]).logits[0]
    torch.manual_seed(5)
    theirs = get_peft_model(base, LoraConfig(
        r=3, lora_alpha=6, target_modules=["o_proj"], target_parameters=targets, task_type="CAUSAL_LM",
        init_lora_weights=False)).eval()
    with torch.inference_mode():
        logits_TV = theirs(IDS[None]).logits[0]
    theirs.save_pretrained(tmp_path / "adapter")
    return logits_TV, plain_TV


def ours_with(tmp_path):
    checkpoint = open_checkpoint(tmp_path / "model")
    model = load_model(checkpoint, read_spec(checkpoint), dtype=torch.float32)
    slot = attach(model, "theirs", read_adapter(tmp_path / "adapter").weights).slot
    with torch.inference_mode():
        pack = IDS, torch.arange(len(IDS)), AttnInput.without_cache((len(IDS),))
        return model.logits(model.forward(*pack, AdapterRows(((0, len(IDS), slot),))))


@pytest.mark.parametrize("targets", [ALL, ALL[1:], ALL[:1]], ids=["both", "down", "gate and up"])
@pytest.mark.parametrize("name", NAMES)
def test_an_adapter_of_stacked_experts_answers_as_in_peft(name, targets, tmp_path):
    want_TV, plain_TV = peft_adapter(tmp_path, name, targets)
    assert (want_TV - plain_TV).abs().max() > 0.1, "the adapter must matter"
    torch.testing.assert_close(ours_with(tmp_path), want_TV, rtol=1e-3, atol=1e-3)


def test_the_layout_of_later_versions_is_the_same_adapter(tmp_path):
    """In 0.21 A reads the inputs of a stack [E, outputs, inputs]: A and B are each other's, transposed."""
    want_TV, _ = peft_adapter(tmp_path, "qwen3_moe", ALL)
    path = tmp_path / "adapter" / WEIGHTS
    tensors = load_file(path)
    for key in [key for key in tensors if "experts" in key and "lora_A" in key]:
        other = key.replace("lora_A", "lora_B")
        a_ERI, b_OER = tensors[key].unflatten(0, (8, 3)), tensors[other].unflatten(1, (3, 8)).mT
        tensors[key] = b_OER.permute(1, 2, 0).flatten(0, 1).contiguous()
        tensors[other] = a_ERI.permute(2, 1, 0).flatten(1).contiguous()
    save_file(tensors, path, {"format": "pt"})
    torch.testing.assert_close(ours_with(tmp_path), want_TV, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("change", "problem"), [
    (lambda tensors: tensors.update({f"{STACK}.lora_B.weight": torch.zeros(64, 21)}), "do not fit"),
    (lambda tensors: tensors.update({f"{STACK}.lora_B.weight": torch.zeros(63, 24)}), "do not fit"),
    (lambda tensors: tensors.update({
        key.replace(STACK, f"{STACK}.base_layer"): tensor.clone() for key, tensor in tensors.items()
        if key.startswith(f"{STACK}.lora")}), "twice"),
    (lambda tensors: tensors.update({
        key.replace("layers.1", "layers.2"): tensor.clone()
        for key, tensor in tensors.items()}), "does not have"),
])
def test_a_stack_that_does_not_fit_is_refused(change, problem, tmp_path):
    peft_adapter(tmp_path, "qwen3_moe", ALL)
    tensors = load_file(tmp_path / "adapter" / WEIGHTS)
    change(tensors)
    save_file(tensors, tmp_path / "adapter" / WEIGHTS, {"format": "pt"})
    with pytest.raises(UsageError, match=problem):
        ours_with(tmp_path)


def test_sizes_that_two_layouts_share_are_refused(tmp_path):
    peft_adapter(tmp_path, "qwen3_moe", ALL, hidden_size=64, moe_intermediate_size=32)
    with pytest.raises(UsageError, match="64 inputs and as many outputs"):
        ours_with(tmp_path)
