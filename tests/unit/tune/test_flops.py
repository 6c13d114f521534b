"""What MFU counts, beside torch's own counter on the model of transformers."""

import torch
from support.tiny import build_llama
from torch.utils.flop_counter import FlopCounterMode

from openhearth.formats import open_checkpoint
from openhearth.spec import read_spec
from openhearth.tune.data.records import Sample
from openhearth.tune.derive import count_lora
from openhearth.tune.memory import training_flops
from openhearth.tune.packs import pack_completions, pack_samples
from openhearth.tune.settings import LAYERS

RANK, ROWS = 3, 7


def count(model):
    """Operations of forward and backward over ROWS sequences of one token: nothing is hidden by a mask."""
    with FlopCounterMode(display=False) as counter:
        model(torch.arange(ROWS)[:, None], use_cache=False).logits.sum().backward()
    return counter.get_total_flops()


def test_operations_are_those_that_torch_counts(tmp_path):
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaForCausalLM

    build_llama(tmp_path)
    spec = read_spec(open_checkpoint(tmp_path))
    model = LlamaForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").train()
    assert count(model) == training_flops(spec, ROWS, ROWS, ROWS, None)
    adapted = get_peft_model(model, LoraConfig(r=RANK, target_modules=list(LAYERS)))
    wanted = training_flops(spec, ROWS, ROWS, ROWS, count_lora(spec, RANK, LAYERS))
    # The embedding is frozen: what the first layer's projections read has no gradient.
    width, outputs = spec.hidden_size, (spec.num_heads + 2 * spec.num_kv_heads) * spec.head_dim
    assert count(adapted) == wanted - 2 * ROWS * (width * outputs + 3 * RANK * width)


def test_a_pack_counts_pairs_that_see_each_other_and_rows_that_have_logits(tmp_path):
    build_llama(tmp_path)
    spec = read_spec(open_checkpoint(tmp_path))
    samples = [Sample((1, 2, 3, *rest), (False,) * 3 + (True,) * len(rest), "a", 1)
               for rest in ((4, 5), (6, 7, 8))]
    whole, shared = pack_samples(samples), pack_completions(samples)
    assert whole.flops(spec, None) == training_flops(spec, 5 + 6, 15 + 21, 5, None)
    # The prompt's 3 rows once; the last tokens, which nothing follows, have no row.
    assert shared.flops(spec, 10) == training_flops(spec, 3 + 1 + 2, 6 + 4 + (4 + 5), 5, 10)
