"""Windows, soft caps, sinks, scales and cache types: native paths against the reference, and bit for bit."""

import pytest
import torch
from support.attention import Pages, draw, rotation_of, run_whole
from support.native import every_isa

from openhearth.errors import Unsupported
from openhearth.kernels import select
from openhearth.kernels.attention import cache as kv_cache
from openhearth.kernels.attention import native, reference
from openhearth.kernels.attention.inputs import AttnInput, AttnOptions
from openhearth.kernels.rope.reference import RotationTable, inverse_frequencies
from openhearth.spec import RopeSpec

BF16, F32, INT8 = torch.bfloat16, torch.float32, torch.int8
TYPES = [(BF16, BF16), (BF16, INT8), (BF16, F32), (F32, F32), (F32, BF16), (F32, INT8)]  # rows, cache
OPTIONS = {"window": {"window": 37}, "window_of_one": {"window": 1}, "cap": {"soft_cap": 1.5},
           "scale": {"scale": 0.37}, "sinks": {"has_sinks": True},
           "all": {"window": 70, "soft_cap": 2.0, "scale": 0.2, "has_sinks": True}}
ODD_SHAPES = [(3, 3, 16), (6, 2, 80), (8, 2, 96), (8, 1, 128), (4, 1, 256), (3, 1, 20), (1, 1, 2)]

every_type = pytest.mark.parametrize(("dtype", "kv_dtype"), TYPES, ids=str)


def options_of(name, num_heads):
    settings = dict(OPTIONS[name])
    if settings.pop("has_sinks", False):
        settings["sinks_H"] = torch.linspace(-2, 3, num_heads)
    return AttnOptions(**settings)


def turn(heads_THE, rotation):
    """Rope with one rounding less than the reference's, as the native kernels compute it."""
    cos_T1E, sin_T1E, _ = rotation
    size = cos_T1E.shape[-1]
    turned_THE = heads_THE[..., :size].float()
    turned_THE = torch.addcmul(turned_THE * cos_T1E, turned_THE.roll(size // 2, -1), sin_T1E)
    return torch.cat((turned_THE.to(heads_THE.dtype), heads_THE[..., size:]), -1)


def by_reference(q_TD, k_TC, v_TC, shape, options, kv_dtype, rotary_dim=None):
    """Outputs in float32 from rows and keys rounded as the native kernels round them."""
    rotation = rotation_of(torch.arange(len(q_TD)), rotary_dim or shape[2])
    heads = [x.unflatten(1, (-1, shape[2])) for x in (q_TD, k_TC, v_TC)]
    q_THE = turn(heads[0], rotation).float()
    k_TKE = turn(heads[1].float(), rotation)
    attn = AttnInput.without_cache((len(q_TD),), kv_dtype)
    plan = reference.plan_attention(attn, dtype=F32, device=q_TD.device)
    return reference.attend(plan, 0, q_THE, k_TKE, heads[2].float(), options)


def assert_near(found_TD, want_TD, v_TC, dtype, isa):
    # bfloat16 rows: their own rounding, that of turned queries and keys, and with AMX that of the weights.
    allowed = (2**-6 if dtype == BF16 else 3e-5) * v_TC.float().abs().max()
    assert (found_TD.float() - want_TD).abs().max() <= allowed


@every_isa
@every_type
@pytest.mark.parametrize("name", OPTIONS)
def test_options_are_those_of_the_reference(name, dtype, kv_dtype, isa):
    shape = (6, 2, 64)
    inputs, options = draw(150, shape, dtype), options_of(name, 6)
    found_TD = run_whole(*inputs, shape, isa, options, kv_dtype)
    assert_near(found_TD, by_reference(*inputs, shape, options, kv_dtype), inputs[2], dtype, isa)
    plain_TD = run_whole(*inputs, shape, isa, kv_dtype=kv_dtype)
    assert (found_TD - plain_TD).abs().max() > 0.1, "the options change something"


@every_isa
@every_type
@pytest.mark.parametrize("shape", ODD_SHAPES, ids=str)
def test_odd_shapes_are_those_of_the_reference(shape, dtype, kv_dtype, isa):
    inputs, options = draw(140, shape, dtype), AttnOptions(window=100)
    found_TD = run_whole(*inputs, shape, isa, options, kv_dtype)
    assert_near(found_TD, by_reference(*inputs, shape, options, kv_dtype), inputs[2], dtype, isa)


@every_isa
@every_type
@pytest.mark.parametrize("name", ["all", "window", "sinks"])
def test_chunks_over_any_pages_give_the_bits_of_the_whole(name, dtype, kv_dtype, isa):
    shape, options = (6, 2, 64), options_of(name, 6)
    inputs = {s: draw(length, shape, dtype, seed=s) for s, length in {0: 150, 1: 64, 2: 65, 3: 1}.items()}
    for seed, page_size in enumerate((4, 16, 64)):
        pages = Pages(shape, kv_dtype, seed, page_size, 80, options)
        for s, found_TD in pages.run(inputs, shape, isa, seed).items():
            assert torch.equal(found_TD, run_whole(*inputs[s], shape, isa, options, kv_dtype))


@every_isa
@every_type
@pytest.mark.parametrize("shape", ODD_SHAPES, ids=str)
def test_chunks_of_odd_shapes_give_the_bits_of_the_whole(shape, dtype, kv_dtype, isa):
    inputs = {0: draw(131, shape, dtype)}
    found_TD = Pages(shape, kv_dtype, 0, 16, 20).run(inputs, shape, isa, 0)[0]
    assert torch.equal(found_TD, run_whole(*inputs[0], shape, isa, kv_dtype=kv_dtype))


@every_isa
@pytest.mark.parametrize("kv_dtype", [BF16, INT8], ids=str)
@pytest.mark.parametrize("options", [AttnOptions(), AttnOptions(window=900)], ids=["all_keys", "window"])
def test_long_contexts_have_the_same_bits_for_any_number_of_rows_and_threads(options, kv_dtype, isa):
    shape = (6, 2, 32)
    inputs = {0: draw(1300, shape, BF16), 1: draw(600, shape, BF16, seed=1)}
    whole = {s: run_whole(*rows, shape, isa, options, kv_dtype) for s, rows in inputs.items()}
    before = torch.get_num_threads()
    try:
        for threads, sizes in ((1, (100, 1, 7)), (3, (300, 5)), (2, (23,))):
            select.set_num_threads(threads)
            pages = Pages(shape, kv_dtype, threads, 16, 130, options)
            for s, found_TD in pages.run(inputs, shape, isa, threads, sizes).items():
                assert torch.equal(found_TD, whole[s])
    finally:
        select.set_num_threads(before)


@every_isa
@every_type
def test_keys_that_left_every_window_are_not_read(dtype, kv_dtype, isa):
    shape, window = (6, 2, 64), 40
    inputs = draw(600, shape, dtype)
    pages = Pages(shape, kv_dtype, 0, 8, 90, AttnOptions(window=window))
    want_TD = run_whole(*inputs, shape, isa, pages.options, kv_dtype)
    for count in (560, 30, 1, 9):
        start = pages.lens.get(0, 0)
        for page in pages.tables.get(0, [])[:max(0, start + 1 - window) // 8]:
            for part in (pages.cache.keys[0], pages.cache.values[0]):
                part[page] = -1 if kv_dtype == INT8 else float("nan")
        found_TD = pages.step({0: count}, {0: inputs}, shape, isa)[0]
        assert torch.equal(found_TD, want_TD[start:start + count])


@every_isa
@every_type
def test_nan_of_a_token_reaches_those_that_see_it_and_no_other(dtype, kv_dtype, isa):
    shape, options = (6, 2, 64), AttnOptions(window=30)
    inputs = draw(120, shape, dtype)
    clean_TD = run_whole(*inputs, shape, isa, options, kv_dtype)
    for part in (1, 2):
        for value in (float("nan"), float("inf")):
            dirty = [tensor.clone() for tensor in inputs]
            dirty[part][50, 3] = value
            found_TD = run_whole(*dirty, shape, isa, options, kv_dtype)
            assert torch.equal(found_TD[:50], clean_TD[:50]) and torch.equal(found_TD[80:], clean_TD[80:])
            if part == 2 or value != value:  # a key of infinity may also weigh nothing
                assert (~found_TD[50:80].isfinite()).any(1).all()


@every_isa
@pytest.mark.parametrize("rotary_dim", [2, 16, 20, 64])
def test_partial_rotation_leaves_the_rest_of_a_head(rotary_dim, isa):
    shape, options = (4, 2, 64), AttnOptions(head_dim=64)
    inputs = draw(70, shape, F32)
    found_TD = run_whole(*inputs, shape, isa, options, None, rotary_dim)
    assert_near(found_TD, by_reference(*inputs, shape, options, F32, rotary_dim), inputs[2], F32, isa)


@every_isa
@pytest.mark.parametrize("head_dim", [64, 80, 20])
@pytest.mark.parametrize("dtype", [BF16, F32], ids=str)
def test_native_kernels_write_the_bytes_of_the_reference_and_stay_within_half_a_scale(dtype, head_dim, isa):
    shape = (2, 2, head_dim)
    inputs = draw(40, shape, dtype)
    inputs[2][3] *= 1e-30
    inputs[2][5], inputs[2][6, 0], inputs[2][7, 1] = 0, float("nan"), float("-inf")
    pages = Pages(shape, INT8, 0, 8, 5)
    pages.step({0: 40}, {0: inputs}, shape, isa)
    slots = torch.tensor(pages.tables[0])[:, None] * 8 + torch.arange(8)
    written = pages.cache.values[0].flatten(0, 1)[slots.flatten()]
    values = inputs[2].unflatten(1, (2, head_dim))
    expected = kv_cache.encode(values, INT8)
    decoded, wanted = (kv_cache.decode(parts, head_dim, F32) for parts in (written, expected))
    assert torch.equal(decoded.nan_to_num(1e9), wanted.nan_to_num(1e9))
    finite = values.isfinite().flatten(1).all(1)
    error = (decoded - values.float())[finite].abs().flatten()
    largest = torch.nn.functional.pad(values[finite].float(), (0, -head_dim % 32)).unflatten(-1, (-1, 32))
    largest = largest.abs().amax(-1, keepdim=True).expand(*largest.shape)
    largest = largest.flatten(-2)[..., :head_dim].flatten()
    assert (error <= largest * (1.008 / 254) + 1e-37).all()
    assert decoded[6, 0, :20].isnan().all() and decoded[7, 0, :20].isnan().all()


@every_isa
def test_gradients_with_options_are_those_of_the_reference(isa):
    shape, lengths = (6, 2, 16), (70, 1, 20)
    sinks = [torch.linspace(-1, 1, 6).requires_grad_() for _ in range(2)]
    ours = [tensor.requires_grad_() for tensor in draw(91, shape, F32)]
    theirs = [tensor.detach().clone().requires_grad_() for tensor in ours]
    attn, rotation = AttnInput.without_cache(lengths), rotation_of(torch.arange(91), 16)
    options = [AttnOptions(window=33, soft_cap=3.0, sinks_H=one) for one in sinks]
    out_TD = native.attend(native.plan_attention(attn), 0, *ours, rotation, options[0], isa=isa)
    out_TD.square().sum().backward()
    plan = reference.plan_attention(attn, dtype=F32, device=torch.device("cpu"))
    reference.attend_turned(plan, 0, *theirs, rotation, options[1]).square().sum().backward()
    for our, their in zip([*ours, sinks[0]], [*theirs, sinks[1]], strict=True):
        torch.testing.assert_close(our.grad, their.grad, rtol=1e-3, atol=1e-5)
    with pytest.raises(Unsupported, match="int8"):
        run_whole(*ours, shape, isa, kv_dtype=INT8)


@every_isa
@every_type
def test_a_table_of_angles_gives_the_bits_of_angles_per_token(dtype, kv_dtype, isa):
    shape, lengths = (6, 2, 64), (40, 3)
    inputs, positions = draw(43, shape, dtype), torch.cat([torch.arange(40), torch.arange(3)])
    plan = native.plan_attention(AttnInput.without_cache(lengths, kv_dtype))
    table = RotationTable(RopeSpec(), inverse_frequencies(RopeSpec(), 64), 100)
    found_TD = native.attend(plan, 0, *inputs, table.rotation(positions, 40), isa=isa)
    assert torch.equal(found_TD, native.attend(plan, 0, *inputs, rotation_of(positions, 64), isa=isa))
