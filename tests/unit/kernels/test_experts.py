"""Experts in one native call: the bits of their products and gates called one after the other."""

import pytest
import torch

from openhearth.errors import UsageError
from openhearth.kernels.experts.native import add_experts
from openhearth.kernels.experts.packed import PackedExperts
from openhearth.kernels.glu.native import glu
from openhearth.kernels.linear.native import linear
from openhearth.kernels.linear.packed import PackedWeight, RowParts, Rows, block_rows, number_rows
from openhearth.kernels.linear.streamed import Budget, StreamedWeight
from openhearth.kernels.select import NATIVE_ISAS, chosen, missing, native, set_num_threads

pytestmark = pytest.mark.skipif(not chosen().is_native, reason="native kernels only")
ISAS = [isa for isa in NATIVE_ISAS if not missing(isa)]
FORMATS = ["F32", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q4_K", ("Q4_K", "Q4_0", "Q8_0"), ("BF16", "Q4_1", "BF16")]
# T, E, C, D, F
SHAPES = [(1, 8, 3, 256, 256), (1, 64, 8, 512, 256), (7, 5, 5, 256, 768), (64, 16, 4, 768, 256),
          (300, 12, 2, 256, 512), (0, 4, 2, 256, 256)]
BLOCKS = {"Q8_0": (32, 34, 1), "Q4_0": (32, 18, 1), "Q4_1": (32, 20, 2), "Q4_K": (256, 144, 2)}
every_isa = pytest.mark.parametrize("isa", ISAS)


@pytest.fixture(autouse=True)
def two_threads():
    before = native().num_threads()
    set_num_threads(2)
    yield
    set_num_threads(before)


def draw(format, num_outputs, num_inputs, generator) -> Rows:
    """Rows of a weight: any quants, and scales (a block's first float16 numbers) from 2^-8 to 2^-7."""
    if format in ("F32", "BF16"):
        weight_NK = torch.randn(num_outputs, num_inputs, generator=generator) / num_inputs**0.5
        return number_rows(weight_NK if format == "F32" else weight_NK.bfloat16())
    numbers, num_bytes, num_scales = BLOCKS[format]
    count = num_outputs * num_inputs // numbers
    blocks = torch.randint(0, 256, (count, num_bytes), dtype=torch.uint8, generator=generator)
    scales = torch.rand(count, num_scales, generator=generator) * 2**-8 + 2**-8
    blocks[:, :2 * num_scales] = scales.half().view(torch.uint8)
    return block_rows(blocks.flatten(), format, (num_outputs, num_inputs))


def build(formats, num_experts, size, inner_size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    formats = (formats,) * 3 if isinstance(formats, str) else formats
    shapes = ((inner_size, size), (inner_size, size), (size, inner_size))
    return [tuple(PackedWeight(draw(format, *shape, generator))
                  for format, shape in zip(formats, shapes, strict=True)) for _ in range(num_experts)]


def route(num_rows, num_experts, num_chosen, seed, left_out=()):
    """Experts of each row, ascending, and their weights; nobody chooses those left out."""
    generator = torch.Generator().manual_seed(seed)
    scores_TE = torch.rand(num_rows, num_experts, generator=generator)
    scores_TE[:, list(left_out)] = -1
    experts_TC = scores_TE.topk(num_chosen).indices.sort(-1).values
    return experts_TC, torch.randn(num_rows, num_chosen, generator=generator)


def gate_and_multiply(x_ND, gate, up, activation, isa):
    if activation != "clamped":
        return glu(linear(x_ND, gate, isa=isa), linear(x_ND, up, isa=isa), activation, isa=isa)
    gate_NF, up_NF = (linear(x_ND, one, out_dtype=torch.float32, isa=isa) for one in (gate, up))
    scaled_NF = (up_NF.clamp(-7, 7) + 1) / 1.702
    return glu(gate_NF.clamp(max=7) * 1.702, scaled_NF, isa=isa).to(x_ND.dtype)


def one_by_one(x_TD, experts_TC, weights_TC, packs, activation, isa):
    """Each expert from Python, in ascending order."""
    total_TD = torch.zeros(x_TD.shape)
    for expert, (gate, up, down) in enumerate(packs):
        rows, places = (experts_TC == expert).nonzero(as_tuple=True)
        if len(rows):
            x_ND = x_TD[rows]
            gated_NF = gate_and_multiply(x_ND, gate, up, activation, isa)
            y_ND = linear(gated_NF, down, out_dtype=torch.float32, isa=isa)
            total_TD.index_add_(0, rows, y_ND * weights_TC[rows, places][:, None])
    return total_TD


@every_isa
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh", "clamped"])
@pytest.mark.parametrize("formats", FORMATS, ids=str)
def test_one_call_has_the_bits_of_many(formats, activation, isa):
    for seed, (num_rows, num_experts, num_chosen, size, inner_size) in enumerate(SHAPES):
        packs = build(formats, num_experts, size, inner_size, seed)
        generator = torch.Generator().manual_seed(seed)
        x_TD = torch.randn(num_rows, size + 5, generator=generator).to(packs[0][0].dtype)[:, 5:]
        left_out = range(1, num_experts, 3) if num_experts > 2 * num_chosen else ()
        chosen_experts = route(num_rows, num_experts, num_chosen, seed, left_out)
        found_TD = add_experts(x_TD, *chosen_experts, PackedExperts.of(packs), activation, isa=isa)
        want_TD = one_by_one(x_TD, *chosen_experts, packs, activation, isa)
        assert torch.equal(found_TD, want_TD), (num_rows, num_experts)
        assert num_rows == 0 or want_TD.abs().max() > 0.01


@every_isa
@pytest.mark.parametrize("size, inner_size", [(48, 80), (1, 3), (33, 31)])
def test_sizes_that_fill_no_panel(size, inner_size, isa):
    for format in ("F32", "BF16"):
        packs = build(format, 6, size, inner_size)
        x_TD = torch.randn(20, size, generator=torch.Generator().manual_seed(1)).to(packs[0][0].dtype)
        chosen_experts = route(20, 6, 2, seed=2)
        found_TD = add_experts(x_TD, *chosen_experts, PackedExperts.of(packs), isa=isa)
        assert torch.equal(found_TD, one_by_one(x_TD, *chosen_experts, packs, "silu", isa))


@every_isa
def test_a_row_has_the_same_bits_alone_and_among_more_rows_than_are_computed_together(isa):
    packs = build("Q4_1", 4, 2048, 64)
    experts_TC, weights_TC = route(900, 4, 2, seed=1)  # 1,800 outputs; 16 MiB hold 1,008
    x_TD = torch.randn(900, 2048, generator=torch.Generator().manual_seed(1)).bfloat16()
    found_TD = add_experts(x_TD, experts_TC, weights_TC, PackedExperts.of(packs), isa=isa)
    assert torch.equal(found_TD, one_by_one(x_TD, experts_TC, weights_TC, packs, "silu", isa))
    for row in (0, 450, 899):
        one = slice(row, row + 1)
        alone_TD = add_experts(x_TD[one], experts_TC[one], weights_TC[one], PackedExperts.of(packs), isa=isa)
        assert torch.equal(alone_TD, found_TD[one])


def test_the_number_of_threads_changes_nothing():
    packs, x_TD = build("Q4_0", 8, 512, 256), torch.randn(50, 512, generator=torch.Generator().manual_seed(1))
    results = []
    for count in (1, 2, 3):
        set_num_threads(count)
        results.append(add_experts(x_TD.bfloat16(), *route(50, 8, 3, seed=2), PackedExperts.of(packs)))
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@every_isa
@pytest.mark.parametrize("activation", ["silu", "clamped"])
@pytest.mark.parametrize("format", ["F32", "BF16", "Q8_0", "Q4_1"])
def test_biases_are_added_where_experts_have_them(format, activation, isa):
    generator = torch.Generator().manual_seed(4)
    shapes = ((96, 64), (96, 64), (64, 96))

    def bias(expert, place, size):
        return None if expert == place == 1 else torch.randn(size, generator=generator) * 4

    packs = [tuple(PackedWeight(draw(format, *shape, generator), bias(expert, place, shape[0]))
                   for place, shape in enumerate(shapes)) for expert in range(5)]
    x_TD = torch.randn(40, 64, generator=generator).to(packs[0][0].dtype)
    chosen_experts = route(40, 5, 2, seed=2)
    found_TD = add_experts(x_TD, *chosen_experts, PackedExperts.of(packs), activation, isa=isa)
    assert torch.equal(found_TD, one_by_one(x_TD, *chosen_experts, packs, activation, isa))
    assert found_TD.abs().max() > 7, "some are clamped"


def test_experts_that_differ_or_are_streamed_are_not_put_together():
    packs = build("F32", 3, 48, 80)
    assert PackedExperts.of(packs).num_experts == 3
    assert PackedExperts.of([]) is None
    assert PackedExperts.of([*packs, *build("BF16", 1, 48, 80)]) is None
    assert PackedExperts.of([*packs, *build("F32", 1, 48, 81)]) is None
    assert PackedExperts.of([(down, up, gate) for gate, up, down in packs]) is None
    assert PackedExperts.of(build(("F32", "F32", "BF16"), 3, 48, 80)) is None
    gate, up, down = packs[0]
    streamed = StreamedWeight(RowParts.whole(number_rows(up.unpack())), None, Budget(1 << 20))
    assert PackedExperts.of([*packs, (gate, streamed, down)]) is None


def test_rows_and_choices_of_another_kind_are_refused():
    packed, x_TD = PackedExperts.of(build("F32", 3, 48, 80)), torch.zeros(4, 48)
    experts_TC, weights_TC = route(4, 3, 2, seed=0)
    for rows in (x_TD.bfloat16(), x_TD[:3], x_TD[:, 1:]):
        with pytest.raises(UsageError):
            add_experts(rows, experts_TC, weights_TC, packed)
    for choice in ((experts_TC.int(), weights_TC), (experts_TC, weights_TC[:, :1]),
                   (experts_TC, weights_TC.double())):
        with pytest.raises(UsageError, match="expected int64 and float32"):
            add_experts(x_TD, *choice, packed)
    for wrong in (-1, 3):
        with pytest.raises(IndexError, match="not in the layer"):
            add_experts(x_TD, torch.full_like(experts_TC, wrong), weights_TC, packed)
