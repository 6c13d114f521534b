"""DoRA against peft: gradients, adapters written there and here; training as serving, alone as in a batch."""

import pytest
import torch
from support.tiny import build_llama
from support.tuning import settings_of, train_alone, write_jsonl

from openhearth.engine import Engine, EngineSettings, Request, Sampling
from openhearth.errors import BadFile
from openhearth.formats import open_checkpoint
from openhearth.kernels import select
from openhearth.models import AdapterWeights, attach, load_model
from openhearth.models.adapter_files import read_adapter, write_adapter
from openhearth.runs import RunFolder
from openhearth.spec import read_spec
from openhearth.tune.data.records import Sample
from openhearth.tune.losses.sft import sft_loss
from openhearth.tune.optimizer import AdamSettings, Optimizer
from openhearth.tune.packs import pack_samples, trained_logprobs
from openhearth.tune.settings import LAYERS
from openhearth.tune.weights import adapter_parameters, attach_fresh

PATHS = [f"model.layers.{layer}.{part}.{name}" for layer in (0, 1) for part, names in (
    ("self_attn", LAYERS[:4]), ("mlp", LAYERS[4:])) for name in names]
RANK, ALPHA = 4, 6.0


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "biases"])
def folder(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("dora")
    build_llama(path, with_tokenizer=False, attention_bias=request.param, mlp_bias=request.param)
    return path


def load(folder, dtype=torch.float32, **kinds):
    checkpoint = open_checkpoint(folder)
    return load_model(checkpoint, read_spec(checkpoint), dtype=dtype, **kinds)


def draw(folder, seed=1):
    generator = torch.Generator().manual_seed(seed)
    weights = dict(load(folder, is_trainable=True).named_parameters())
    pairs, magnitudes = {}, {}
    for path in PATHS:
        num_outputs, num_inputs = weights[f"{path}.weight"].shape
        pairs[path] = (torch.randn(RANK, num_inputs, generator=generator) * 0.2,
                       torch.randn(num_outputs, RANK, generator=generator) * 0.2)
        magnitudes[path] = torch.rand(num_outputs, generator=generator) + 0.5
    return AdapterWeights(pairs, ALPHA / RANK, magnitudes)


def samples(lengths=(5, 9, 14)):
    generator = torch.Generator().manual_seed(0)
    return [Sample(tuple(torch.randint(512, (length,), generator=generator).tolist()),
                   (False, *[True] * (length - 1)), "drawn", length) for length in lengths]


def peft_loss(model):
    total, count = 0, 0
    for sample in samples():
        ids = torch.tensor([sample.token_ids])
        logprobs = torch.log_softmax(model(ids).logits[0, :-1].float(), -1)
        total, count = total - logprobs.gather(1, ids[0, 1:, None]).sum(), count + ids.shape[1] - 1
    return total / count


def test_gradients_are_those_of_peft(folder, tmp_path):
    from peft import PeftModel
    from transformers import LlamaForCausalLM

    write_adapter(tmp_path, draw(folder), rank=RANK, alpha=ALPHA, is_rank_stabilised=False,
                  base_model=str(folder), base_weights_sha256="")
    base = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    theirs = PeftModel.from_pretrained(base, tmp_path, is_trainable=True)
    wanted = peft_loss(theirs)
    wanted.backward()
    model = load(folder).requires_grad_(False)
    adapter = attach(model, "one", read_adapter(tmp_path).weights, is_trainable=True)
    optimizer = Optimizer(adapter_parameters(adapter), AdamSettings())
    count = sum(sample.num_trained for sample in samples())
    loss = sft_loss(trained_logprobs(model, pack_samples(samples()), adapter.slot), count)
    loss.backward()
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    by_name, gradients = dict(theirs.named_parameters()), optimizer.gradients()
    assert len(gradients) == 3 * len(PATHS)
    for path in PATHS:
        for ours, kind in (("a", "lora_A.default.weight"), ("b", "lora_B.default.weight"),
                           ("m", "lora_magnitude_vector.default.weight")):
            one, other = gradients[f"{path}.{ours}"], by_name[f"base_model.model.{path}.{kind}"].grad
            assert (one - other).norm() <= 1e-4 * other.norm(), f"{path}.{ours}"


def test_an_adapter_that_peft_wrote_answers_the_same_here(folder, tmp_path):
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaForCausalLM

    theirs = get_peft_model(LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32), LoraConfig(
        r=3, lora_alpha=5, target_modules=["q_proj", "down_proj"], use_dora=True, init_lora_weights=False,
        task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "magnitude" in name:
                parameter.mul_(1.3)
    theirs.save_pretrained(tmp_path)
    model = load(folder)
    slot = attach(model, "theirs", read_adapter(tmp_path).weights).slot
    with torch.no_grad():
        ours = -trained_logprobs(model, pack_samples(samples()), slot).mean()
        assert float(ours) == pytest.approx(float(peft_loss(theirs)), abs=1e-4)
        assert float(ours) != pytest.approx(float(-trained_logprobs(model, pack_samples(samples())).mean()),
                                            abs=1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_fresh_adapter_changes_nothing_and_what_is_served_is_what_is_trained(folder, dtype):
    model = load(folder, dtype).requires_grad_(False)
    with torch.no_grad():
        plain = trained_logprobs(model, pack_samples(samples()))
    fresh = attach_fresh(model, rank=RANK, scale=1.0, layers=LAYERS, seed=0, use_dora=True)
    trained = trained_logprobs(model, pack_samples(samples()), fresh.slot)
    torch.testing.assert_close(trained, plain, rtol=1e-5, atol=1e-5)
    slot = attach(model, "drawn", draw(folder), is_trainable=True).slot
    packed = trained_logprobs(model, pack_samples(samples()), slot)
    alone = torch.cat([trained_logprobs(model, pack_samples([one]), slot) for one in samples()])
    with torch.inference_mode():
        served = trained_logprobs(model, pack_samples(samples()), slot)
    tolerance = 0.0 if select.chosen().is_native else 1e-4 if dtype == torch.float32 else 0.03
    assert packed.requires_grad
    torch.testing.assert_close(packed, alone, rtol=0, atol=tolerance)
    torch.testing.assert_close(packed, served, rtol=0, atol=tolerance)


def test_requests_with_and_without_it_share_a_batch(folder):
    model = load(folder)
    engine = Engine(model, weights_version="w", settings=EngineSettings(page_size=8))
    engine.attach("drawn", draw(folder))
    sampling = Sampling(seed=3, max_tokens=6)
    asked = [Request((1, 2, 3), sampling, adapter="drawn"), Request((1, 2, 3), sampling)]
    together = [found[0].token_ids for found in engine.generate(asked)]
    assert together == [engine.generate([one])[0][0].token_ids for one in asked]
    drawn = engine.generate([asked[0]])[0][0]
    ids = (1, 2, 3, *drawn.token_ids)
    tolerance = 0.0 if select.chosen().is_native else 1e-4
    assert engine.score(ids, "drawn")[2:] == pytest.approx(list(drawn.logprobs), rel=0, abs=tolerance), (
        "sampled and scored, bit for bit with native kernels")


def test_a_run_learns_magnitudes_and_its_adapter_loads(tiny_folder, tmp_path):
    data = write_jsonl(tmp_path / "a.jsonl", [{"text": "hello world"}, {"text": "quick brown fox"}])
    run = train_alone(tmp_path, settings_of(tiny_folder, data, batch_size=2, use_dora=True))
    stored = read_adapter(run.output).weights
    assert len(stored.magnitudes) == len(stored.pairs) == 14
    model = load(tiny_folder)
    fresh = attach_fresh(model, rank=4, scale=1.0, layers=LAYERS, seed=0, use_dora=True)
    pair = dict(zip(fresh.layer_names, fresh.pairs, strict=True))
    assert all((stored.magnitudes[path] != pair[path].magnitude).any() for path in stored.pairs)
    assert RunFolder(tmp_path, "run").metrics()[-1]["loss"] < RunFolder(tmp_path, "run").metrics()[0]["loss"]


def test_an_adapter_without_its_magnitudes_is_refused(folder, tmp_path):
    weights = draw(folder)
    write_adapter(tmp_path, weights, rank=RANK, alpha=ALPHA, is_rank_stabilised=False, base_model="",
                  base_weights_sha256="")
    config = tmp_path / "adapter_config.json"
    config.write_text(config.read_text().replace('"use_dora": true', '"use_dora": false'))
    with pytest.raises(BadFile, match="no pair of rank 4"):
        read_adapter(tmp_path)
