"""Weights that stay in the file: the bits of a model that fits, whatever fits."""

import pytest
import torch
from support.packs import PagedRunner, run_whole
from support.tiny import build_gguf, build_llama

from openhearth.formats import open_checkpoint
from openhearth.kernels import select
from openhearth.kernels.linear.packed import PackedWeight, RowParts, number_rows, quantize
from openhearth.kernels.linear.streamed import Budget, StreamedWeight
from openhearth.models import load_model, record
from openhearth.models.linear import Embedding, Linear
from openhearth.spec import choose_weights, read_spec

pytestmark = pytest.mark.skipif(not select.chosen().is_native, reason="plain torch has packed weights only")
IDS = torch.randint(0, 512, (40,), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("streamed")
    build_llama(folder / "untied", with_tokenizer=False, dtype="bfloat16", attention_bias=True)
    build_llama(folder / "tied", with_tokenizer=False, tie_word_embeddings=True)
    for quant in ("Q8_0", "Q4_0", "Q5_0", "F16"):
        build_gguf(folder / "tied", folder / f"{quant}.gguf", quant)
    return {path.name: path for path in folder.iterdir()}


def load(path, form, resident_bytes=None):
    checkpoint = open_checkpoint(path)
    dtype = torch.float32 if form == "float32" else torch.bfloat16
    return load_model(checkpoint, read_spec(checkpoint), dtype=dtype, weights=form,
                      resident_bytes=resident_bytes)


def matrices(model):
    return [one.packed for one in model.modules() if isinstance(one, Linear | Embedding)]


@pytest.mark.parametrize(("name", "form"), [
    ("untied", "bfloat16"), ("untied", "float32"), ("untied", "int8"), ("untied", "int4"),
    ("tied", "float32"), ("Q8_0.gguf", "stored"), ("Q4_0.gguf", "stored"), ("Q4_0.gguf", "float32"),
    ("Q5_0.gguf", "stored"), ("F16.gguf", "bfloat16"), ("Q5_0.gguf", "int4")])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_bits_are_those_of_weights_in_memory(paths, name, form, share):
    whole = load(paths[name], form)
    total = sum(packed.num_bytes for packed in matrices(whole) if packed is not None)
    streamed = load(paths[name], form, 2 * total if share == 1.0 else int(share * total))
    with torch.inference_mode():
        for _ in range(2):
            want = whole.logits(run_whole(whole, IDS))
            assert torch.equal(streamed.logits(run_whole(streamed, IDS)), want)
    budget = matrices(streamed)[0]._budget
    assert budget.kept_bytes <= budget.limit_bytes
    assert (budget.read_bytes == 0) == (share == 1.0)
    assert (budget.kept_bytes == 0) == (share == 0.0)


@pytest.mark.parametrize("format", ["F32", "BF16", "Q8_0", "Q4_1"])
def test_a_pack_has_no_byte_of_the_one_before(format):
    """One after the other through the same buffer: padded ones and ones that fill their panels."""
    budget = Budget(0)
    for shape in ((96, 128), (70, 64), (64, 96), (33, 32), (64, 64)):
        weight_NK = torch.randn(shape, generator=torch.Generator().manual_seed(shape[0]))
        rows = (number_rows(weight_NK) if format == "F32" else number_rows(weight_NK.bfloat16())
                if format == "BF16" else quantize(weight_NK, format))
        streamed = StreamedWeight(RowParts.whole(rows), None, budget)
        assert torch.equal(streamed.packed, PackedWeight(rows).packed)


def test_what_is_read_when_used_is_not_recorded(paths):
    model = load(paths["untied"], "bfloat16", 0)
    assert record(model, PagedRunner(model).cache) is None


def test_rows_of_a_table_are_read_alone():
    table_VD = torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
    made = []

    def make(start, count):
        made.append((start, count))
        return number_rows(table_VD[start:start + count])

    budget = Budget(0)
    streamed = StreamedWeight(RowParts(make, (64, 32), "F32", 64), None, budget)
    assert torch.equal(streamed.gather_rows(torch.tensor([3, 63, 3])), table_VD[[3, 63, 3]])
    assert streamed.gather_rows(torch.tensor([], dtype=torch.int64)).shape == (0, 32)
    assert budget.read_bytes == 0 and made == [(3, 1), (63, 1), (3, 1)]


def test_a_model_that_does_not_fit_keeps_what_does(paths):
    checkpoint = open_checkpoint(paths["untied"])
    spec = read_spec(checkpoint)
    whole = choose_weights("auto", "auto", checkpoint, spec, has_native=True, available_bytes=1 << 40)
    found = choose_weights("auto", "auto", checkpoint, spec, has_native=True, available_bytes=1000)
    assert (found.form, found.resident_bytes, found.held_bytes) == (whole.form, 800, 800)
    assert whole.resident_bytes is None and whole.held_bytes == whole.num_bytes
