"""Products with GGUF blocks: against float64 of the dequantised weight, and bit for bit; the quantisers."""

from dataclasses import replace

import gguf
import numpy as np
import pytest
import torch

from openhearth.errors import Unsupported, UsageError
from openhearth.formats.ggml_types import BLOCK_TYPES
from openhearth.kernels.linear.native import linear
from openhearth.kernels.linear.packed import (
    BLOCK_FORMATS,
    PackedWeight,
    Rows,
    block_rows,
    number_rows,
    quantize,
)
from openhearth.kernels.select import NATIVE_ISAS, missing, native, set_num_threads

ISAS = [isa for isa in NATIVE_ISAS if not missing(isa)]
HALVES = {"Q4_0": [0], "Q4_1": [0, 2], "Q8_0": [0], "Q4_K": [0, 2]}
SHAPES = [(1, 576, 1536), (1, 1, 256), (2, 33, 256), (3, 100, 768), (6, 31, 512), (7, 64, 256), (16, 95, 256),
          (17, 32, 1024), (32, 65, 256), (33, 40, 512), (70, 129, 768), (300, 34, 256)]  # T, N, K

OVER_BYTES = tuple(f"{format} over bytes" for format in BLOCK_FORMATS)

every_isa = pytest.mark.parametrize("isa", ISAS)
every_format = pytest.mark.parametrize("format", BLOCK_FORMATS + OVER_BYTES)


@pytest.fixture(autouse=True)
def two_threads():
    before = native().num_threads()
    set_num_threads(2)
    yield
    set_num_threads(before)


def random_blocks(format, num_outputs, num_inputs, seed=0):
    """Every pattern of quants, -128 of Q8_0 included, and small float16 scales of both signs."""
    rng = np.random.default_rng(seed)
    format = format.split()[0]
    block = BLOCK_TYPES[format]
    num_blocks = num_outputs * num_inputs // block.num_elements
    blocks = rng.integers(0, 256, (num_blocks, block.num_bytes), dtype=np.uint8)
    for at in HALVES[format]:
        halves = rng.normal(0, 0.05, num_blocks).astype(np.float16)
        blocks[:, at:at + 2] = halves[:, None].view(np.uint8)
    return blocks


def oracle(blocks, format, num_outputs):
    """What the gguf package makes of them."""
    with np.errstate(all="ignore"):
        numbers = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[format.split()[0]])
    return torch.from_numpy(np.ascontiguousarray(numbers)).view(num_outputs, -1)


def pack(blocks, format, num_outputs, num_inputs, bias_N=None):
    raw = torch.from_numpy(blocks.reshape(-1).copy())
    rows = block_rows(raw, format.split()[0], (num_outputs, num_inputs))
    return PackedWeight(replace(rows, takes_bytes=format in OVER_BYTES), bias_N)


def draw(num_rows, num_inputs, seed=1):
    return torch.randn(num_rows, num_inputs, generator=torch.Generator().manual_seed(seed)).bfloat16()


def error_bound(x_TK, packed, weight_NK, exact_TN, *, is_rounded):
    """The bound stated in kernels/linear/native.py, with |d q| and |m| bounded by what the weight shows."""
    num_groups = packed.num_inputs // 32
    groups = weight_NK.double().view(packed.num_outputs, num_groups, 32)
    # |d q| + |m| <= |w| + 2 |m|, and m is within 15 d of any w of its group, which random q nearly span.
    spread = (groups.amax(2) - groups.amin(2)).repeat_interleave(32, dim=1)
    sizes_NK = 3 * weight_NK.double().abs() + 2 * spread * (packed.format in ("Q4_1", "Q4_K"))
    sizes_TN = x_TK.double().abs() @ sizes_NK.T
    bound_TN = 2 * (32 + num_groups + 4) * 2**-24 * sizes_TN + 2**-24 * exact_TN.abs()
    if is_rounded:
        tops_TG = x_TK.double().abs().view(len(x_TK), num_groups, 32).amax(2)
        bound_TN += tops_TG / 254 @ groups.abs().sum(2).T * (1 + 2**-18)
    return bound_TN


def bits(tensor):
    return tensor.view(torch.int16 if tensor.dtype == torch.bfloat16 else torch.int32)


@every_format
@pytest.mark.parametrize("shape", [(1, 256), (33, 512), (100, 768)], ids=str)
def test_unpacking_and_gathering_give_the_bits_of_the_gguf_package(shape, format):
    blocks = random_blocks(format, *shape)
    packed, expected_NK = pack(blocks, format, *shape), oracle(blocks, format, shape[0])
    assert torch.equal(bits(packed.unpack(torch.float32)), bits(expected_NK))
    assert torch.equal(bits(packed.unpack()), bits(expected_NK.bfloat16()))
    ids_T = torch.tensor([shape[0] - 1, 0, shape[0] // 2, 0])
    assert torch.equal(bits(packed.gather_rows(ids_T, torch.float32)), bits(expected_NK[ids_T]))
    assert torch.equal(bits(packed.gather_rows(ids_T)), bits(expected_NK[ids_T].bfloat16()))
    assert packed.gather_rows(ids_T[:0]).shape == (0, shape[1])


@every_isa
@every_format
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_error_stays_under_the_stated_bound(shape, format, isa):
    num_rows, num_outputs, num_inputs = shape
    blocks = random_blocks(format, num_outputs, num_inputs)
    bias_N = torch.randn(num_outputs, generator=torch.Generator().manual_seed(2))
    weight_NK, x_TK = oracle(blocks, format, num_outputs), draw(num_rows, num_inputs)
    packed = pack(blocks, format, num_outputs, num_inputs, bias_N)
    y_TN = linear(x_TK, packed, out_dtype=torch.float32, isa=isa)
    exact_TN = x_TK.double() @ weight_NK.double().T + bias_N.double()
    is_rounded = format in OVER_BYTES and isa != "amx"
    bound_TN = error_bound(x_TK, packed, weight_NK, exact_TN, is_rounded=is_rounded)
    assert ((y_TN - exact_TN).abs() <= bound_TN).all()
    assert torch.equal(linear(x_TK, packed, isa=isa), y_TN.bfloat16())


@every_isa
@every_format
def test_a_row_has_the_same_bits_in_every_batch_and_on_any_number_of_threads(format, isa):
    x_TK = draw(100, 768)
    packed = pack(random_blocks(format, 70, 768), format, 70, 768)
    all_TN = linear(x_TK, packed, isa=isa)
    for num_rows in range(1, 101):
        start = (num_rows * 37) % (101 - num_rows)
        set_num_threads(1 + num_rows % 4)
        part_TN = linear(x_TK[start:start + num_rows], packed, isa=isa)
        assert torch.equal(part_TN, all_TN[start:start + num_rows]), (start, num_rows)
    wide = torch.cat([x_TK, x_TK], dim=1)
    assert torch.equal(linear(wide[:, 768:], packed, isa=isa), all_TN)


@pytest.mark.skipif("avx512" not in ISAS, reason="this CPU has no AVX-512 to compare AVX2 with")
@pytest.mark.parametrize("format", OVER_BYTES)
def test_over_bytes_avx2_and_avx512_give_the_same_bits(format):
    x_TK = draw(21, 768)
    x_TK[3, 32:64], x_TK[4], x_TK[5, 700], x_TK[6, 1] = 0.0, x_TK[4] * 2.0**-120, float("inf"), 2.0**120
    packed = pack(random_blocks(format, 70, 768), format, 70, 768)
    for rows in (slice(0, 21), slice(0, 1), slice(4, 7)):
        found = [linear(x_TK[rows], packed, out_dtype=torch.float32, isa=isa) for isa in ("avx2", "avx512")]
        torch.testing.assert_close(*found, rtol=0, atol=0, equal_nan=True)


@pytest.mark.skipif("amx" not in ISAS, reason="this CPU has no AMX")
@pytest.mark.parametrize("format", OVER_BYTES)
def test_amx_has_no_use_for_bytes(format):
    x_TK, blocks = draw(21, 768), random_blocks(format, 70, 768)
    found = [linear(x_TK, pack(blocks, one, 70, 768), isa="amx") for one in (format, format.split()[0])]
    assert torch.equal(*found)


@every_isa
@every_format
@pytest.mark.parametrize("exponent", [-136, -130, -128, -126, -122])
def test_a_row_whose_products_are_denormal_has_the_same_bits_alone(exponent, format, isa):
    x_TK = (draw(5, 768).float() * 2.0 ** exponent).bfloat16()
    packed = pack(random_blocks(format, 70, 768), format, 70, 768)
    all_TN = linear(x_TK, packed, out_dtype=torch.float32, isa=isa)
    for row in range(5):
        alone_TN = linear(x_TK[row:row + 1], packed, out_dtype=torch.float32, isa=isa)
        assert torch.equal(alone_TN, all_TN[row:row + 1])


@every_isa
@every_format
def test_parts_in_one_pack_are_the_parts_alone(format, isa):
    x_TK, parts = draw(9, 256), []
    for index, num_outputs in enumerate((40, 17, 64, 1)):
        raw = torch.from_numpy(random_blocks(format, num_outputs, 256, seed=index).reshape(-1))
        rows = block_rows(raw, format.split()[0], (num_outputs, 256))
        parts.append(replace(rows, takes_bytes=format in OVER_BYTES))
    together = PackedWeight(replace(parts[0], data=torch.cat([part.data for part in parts])))
    alone = [linear(x_TK, PackedWeight(part), isa=isa) for part in parts]
    assert torch.equal(linear(x_TK, together, isa=isa), torch.cat(alone, dim=1))
    order = torch.randperm(64, generator=torch.Generator().manual_seed(3))
    shuffled = PackedWeight(replace(parts[2], source_rows=order))
    assert torch.equal(shuffled.unpack(), PackedWeight(parts[2]).unpack()[order])
    together.write(replace(parts[2], source_rows=order), 57)
    assert torch.equal(linear(x_TK, together, isa=isa)[:, 57:121], alone[2][:, order])
    assert torch.equal(linear(x_TK, together, isa=isa)[:, :57], torch.cat(alone[:2], dim=1))


@every_isa
@every_format
def test_rows_that_are_not_finite_leave_their_neighbours_alone(format, isa):
    x_TK = draw(40, 256)
    packed = pack(random_blocks(format, 48, 256), format, 48, 256)
    clean_TN = linear(x_TK, packed, isa=isa)
    x_TK[5, 255], x_TK[18], x_TK[39, 0] = float("nan"), float("inf"), float("-inf")
    dirty_TN = linear(x_TK, packed, isa=isa)
    untouched = [row for row in range(40) if row not in (5, 18, 39)]
    assert torch.equal(dirty_TN[untouched], clean_TN[untouched])
    assert dirty_TN[5].isnan().all()
    assert not dirty_TN[[18, 39]].isfinite().any()


@every_isa
@every_format
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_scales_that_are_not_finite_reach_their_output_only(format, isa, value):
    blocks = random_blocks(format, 40, 512)
    clean_TN = linear(draw(18, 512), pack(blocks, format, 40, 512), isa=isa)
    per_row = len(blocks) // 40
    for column, at in zip((7, 33), HALVES[format.split()[0]] * 2, strict=False):
        half = np.array([value], np.float16)
        blocks[column * per_row + per_row - 1, at:at + 2] = half.view(np.uint8)
    dirty_TN = linear(draw(18, 512), pack(blocks, format, 40, 512), isa=isa)
    others = [column for column in range(40) if column not in (7, 33)]
    assert torch.equal(dirty_TN[:, others], clean_TN[:, others])
    assert not dirty_TN[:, [7, 33]].isfinite().any()


@every_isa
@every_format
def test_the_gradient_of_x_is_that_of_the_dequantised_weight(format, isa):
    blocks = random_blocks(format, 35, 256)
    packed, x_TK = pack(blocks, format, 35, 256), draw(19, 256).requires_grad_()
    grad_TN = draw(19, 35, seed=4)
    y_TN = linear(x_TK, packed, isa=isa)
    y_TN.backward(grad_TN)
    assert torch.equal(y_TN, linear(x_TK.detach(), packed, isa=isa))
    assert torch.equal(x_TK.grad, grad_TN @ oracle(blocks, format, 35).bfloat16())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_int8_is_never_further_off_than_the_quantiser_of_the_gguf_package(dtype):
    weight_NK = torch.randn(64, 512, generator=torch.Generator().manual_seed(5)).to(dtype)
    weight_NK[3] = 0.0
    weight_NK[4, :32] = 1e-9
    ours_NK = PackedWeight(quantize(weight_NK, "Q8_0")).unpack(torch.float32)
    theirs = gguf.quants.quantize(weight_NK.float().numpy(), gguf.GGMLQuantizationType.Q8_0)
    theirs_NK = oracle(theirs.reshape(-1, 34), "Q8_0", 64)
    our_error, their_error = ((found - weight_NK.float()).square().sum() for found in (ours_NK, theirs_NK))
    assert our_error <= their_error
    assert (ours_NK[3] == 0).all()
    largest = weight_NK.float().abs().view(64, 16, 32).amax(2, keepdim=True)
    assert ((ours_NK - weight_NK.float()).view(64, 16, 32).abs() <= largest / 250 + 1e-7).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", ["normal", "skewed", "outliers"])
def test_int4_has_clearly_less_error_than_rounding_between_minimum_and_maximum(shape, dtype):
    generator = torch.Generator().manual_seed(6)
    weight_NK = torch.randn(128, 512, generator=generator)
    if shape == "skewed":
        weight_NK = weight_NK.exp()
    if shape == "outliers":
        weight_NK[torch.rand(128, 512, generator=generator) < 0.01] *= 8
    weight_NK = weight_NK.to(dtype)
    ours_NK = PackedWeight(quantize(weight_NK, "Q4_1")).unpack(torch.float32)
    plain = gguf.quants.quantize(weight_NK.float().numpy(), gguf.GGMLQuantizationType.Q4_1)
    plain_NK = oracle(plain.reshape(-1, 20), "Q4_1", 128)
    errors = [(found - weight_NK.float()).view(-1, 32).square().sum(1) for found in (ours_NK, plain_NK)]
    assert errors[0].sum() <= 0.93 * errors[1].sum()
    assert (errors[0] <= errors[1] * 1.01 + 1e-9).all()


def test_quantising_takes_equal_and_tiny_numbers():
    weight_NK = torch.full((2, 64), 0.75)
    weight_NK[1] = 0.0
    for format in ("Q8_0", "Q4_1"):
        found_NK = PackedWeight(quantize(weight_NK, format)).unpack(torch.float32)
        torch.testing.assert_close(found_NK, weight_NK, rtol=1e-3, atol=0)


@pytest.mark.parametrize("format", ["Q8_0", "Q4_1"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_instruction_set_quantises_to_the_same_bytes(dtype, format):
    generator = torch.Generator().manual_seed(7)
    weight_NK = torch.randn(70, 32 * 19, generator=generator).to(dtype)
    weight_NK[1] = weight_NK[1] * 1e-4 + 3.0
    weight_NK[2, :40] = float("nan")
    weight_NK[3, 5] = float("inf")
    weight_NK[4] = 0.0
    isas = [isa for isa in NATIVE_ISAS if not missing(isa)]
    found = {isa: quantize(weight_NK, format, isa=isa).data for isa in isas}
    for isa in isas:
        assert torch.equal(found[isa], found[isas[-1]]), isa
    alone = quantize(weight_NK[5:6, :32], format).data
    assert torch.equal(alone, found[isas[0]][5:6, :alone.shape[1]])


ONES = quantize(torch.ones(2, 32), "Q8_0")


@pytest.mark.parametrize("call,error,text", [
    (lambda: block_rows(torch.zeros(18, dtype=torch.uint8), "Q5_0", (1, 32)), Unsupported, "Q5_0"),
    (lambda: block_rows(torch.zeros(18, dtype=torch.uint8), "Q4_0", (1, 33)), UsageError, r"\[1, 33\]"),
    (lambda: block_rows(torch.zeros(17, dtype=torch.uint8), "Q4_0", (1, 32)), UsageError, "17 bytes"),
    (lambda: block_rows(torch.zeros(0, dtype=torch.uint8), "Q4_0", (1, 0)), UsageError, r"\[1, 0\]"),
    (lambda: quantize(torch.ones(2, 33), "Q8_0"), Unsupported, "33 inputs"),
    (lambda: quantize(torch.ones(2, 32), "Q4_K"), Unsupported, "Q4_K"),
    (lambda: PackedWeight(ONES).write(number_rows(torch.ones(2, 32)), 0), UsageError, "F32"),
    (lambda: PackedWeight(ONES).gather_rows(torch.tensor([2])), UsageError, "2 rows"),
    (lambda: PackedWeight(Rows(ONES.data, "Q8_0", 32, torch.tensor([0, 2]))), UsageError, "source rows"),
    (lambda: linear(torch.ones(1, 32), PackedWeight(ONES)), UsageError, "Q8_0"),
])
def test_what_does_not_fit_is_refused(call, error, text):
    with pytest.raises(error, match=text):
        call()
