"""Native attention: against float64 and the reference, and against itself bit for bit."""

import itertools
import random

import pytest
import torch
from support.native import ISAS, every_dtype, every_isa

from openhearth.errors import Unsupported, UsageError
from openhearth.kernels.attention import native, reference
from openhearth.kernels.attention.inputs import AttnInput, KvCache
from openhearth.kernels.rope import compute_rotation, inverse_frequencies
from openhearth.spec import RopeSpec

SHAPES = [(4, 4, 16), (6, 2, 64), (5, 1, 34), (40, 1, 8), (9, 3, 2)]  # heads, kv heads, head size


def rotation_of(positions, head_dim):
    return compute_rotation(RopeSpec(), inverse_frequencies(RopeSpec(), head_dim), positions)


def draw(length, shape, dtype, seed=0):
    num_heads, num_kv_heads, head_dim = shape
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(length, heads * head_dim, generator=generator).to(dtype)
            for heads in (num_heads, num_kv_heads, num_kv_heads)]


def run_whole(q_TD, k_TC, v_TC, shape, isa):
    plan = native.plan_attention(AttnInput.without_cache((len(q_TD),)))
    return native.attend(plan, 0, q_TD, k_TC, v_TC, rotation_of(torch.arange(len(q_TD)), shape[2]), isa=isa)


def exact(q_TD, k_TC, v_TC, shape):
    """Outputs and their bounds in float64, from q and k turned and rounded by the reference."""
    num_heads, num_kv_heads, head_dim = shape
    rotation = rotation_of(torch.arange(len(q_TD)), head_dim)
    q, k = (reference.apply_rope(x.unflatten(1, (-1, head_dim)), rotation).double() for x in (q_TD, k_TC))
    v = v_TC.double().unflatten(1, (-1, head_dim))
    k, v = (x.repeat_interleave(num_heads // num_kv_heads, 1) for x in (k, v))
    scores = torch.einsum("qhe,khe->hqk", q, k) / head_dim**0.5
    scores = scores.masked_fill(~torch.ones(len(q), len(q), dtype=torch.bool).tril(), float("-inf"))
    out = torch.einsum("hqk,khe->qhe", scores.softmax(-1), v).flatten(1)
    sizes = q.norm(dim=-1).max() * k.norm(dim=-1).max() / head_dim**0.5
    return out, (2 * (head_dim + 2) * sizes + 2 * len(q) + 40) * 2**-24 * v.abs().max()


@every_isa
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 130])
def test_error_in_float32_stays_under_the_stated_bound(length, shape, isa):
    q_TD, k_TC, v_TC = draw(length, shape, torch.float32)
    want_TD, bound = exact(q_TD, k_TC, v_TC, shape)
    bound = bound + 1e-6 * v_TC.abs().max()  # the reference's own rounding while turning
    assert (run_whole(q_TD, k_TC, v_TC, shape, isa).double() - want_TD).abs().max() <= bound


@every_isa
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_in_bfloat16_only_the_output_is_rounded_further(shape, isa):
    q_TD, k_TC, v_TC = draw(130, shape, torch.bfloat16)
    want_TD, bound = exact(q_TD, k_TC, v_TC, shape)
    error_TD = (run_whole(q_TD, k_TC, v_TC, shape, isa).double() - want_TD).abs()
    # Turning in float32 may fall on the other side of a rounding to bfloat16 than the reference's.
    assert (error_TD <= bound + 2**-8 * want_TD.abs() + 0.02 * v_TC.double().abs().max()).all()
    assert (error_TD <= bound + 2**-8 * want_TD.abs() + 1e-4).double().mean() > 0.95


class Pages:
    """A cache of one layer with sequences on pages drawn at random; unwritten slots hold NaN."""

    def __init__(self, shape, dtype, seed, page_size=7, num_pages=120):
        pool = torch.full((2, num_pages, page_size, shape[1], shape[2]), float("nan"), dtype=dtype)
        self.cache, self.page_size = KvCache((pool[0],), (pool[1],)), page_size
        self.free = list(range(num_pages))
        random.Random(seed).shuffle(self.free)
        self.tables, self.lens = {}, {}

    def step(self, chunks, inputs, shape, isa):
        """chunks: {sequence: tokens to append}. Returns {sequence: outputs}."""
        slots, positions = [], []
        for sequence, count in chunks.items():
            table, start = self.tables.setdefault(sequence, []), self.lens.get(sequence, 0)
            for position in range(start, start + count):
                if position // self.page_size == len(table):
                    table.append(self.free.pop())
                slots.append(table[position // self.page_size] * self.page_size + position % self.page_size)
                positions.append(position)
            self.lens[sequence] = start + count
        width = max(len(self.tables[sequence]) for sequence in chunks)
        tables = [self.tables[s] + [0] * (width - len(self.tables[s])) for s in chunks]
        attn = AttnInput((0, *itertools.accumulate(chunks.values())), tuple(self.lens[s] for s in chunks),
                         self.cache, torch.tensor(slots), torch.tensor(tables))
        rows = [torch.cat([inputs[s][part][self.lens[s] - count:self.lens[s]] for s, count in chunks.items()])
                for part in range(3)]
        rotation = rotation_of(torch.tensor(positions), shape[2])
        out_TD = native.attend(native.plan_attention(attn), 0, *rows, rotation, isa=isa)
        return dict(zip(chunks, out_TD.split(list(chunks.values())), strict=True))


@every_isa
@every_dtype
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_any_chunking_and_packing_over_any_pages_gives_the_bits_of_the_whole(shape, dtype, isa):
    lengths = {0: 150, 1: 64, 2: 65, 3: 1, 4: 90}
    inputs = {s: draw(length, shape, dtype, seed=s) for s, length in lengths.items()}
    whole = {s: run_whole(*inputs[s], shape, isa) for s in lengths}
    for seed in range(2):
        rng, pages = random.Random(seed), Pages(shape, dtype, seed)
        found = {s: [] for s in lengths}
        while any(pages.lens.get(s, 0) < length for s, length in lengths.items()):
            chunks = {s: min(rng.choice([0, 1, 1, 2, 13, 70]), length - pages.lens.get(s, 0))
                      for s, length in lengths.items()}
            chunks = {s: count for s, count in chunks.items() if count}
            if chunks:
                for s, out in pages.step(chunks, inputs, shape, isa).items():
                    found[s].append(out)
        for s in lengths:
            assert torch.equal(torch.cat(found[s]), whole[s])


def test_all_paths_follow_the_same_order():
    shape = (6, 2, 64)
    inputs = draw(140, shape, torch.float32)
    first, *others = [run_whole(*inputs, shape, isa) for isa in ISAS]
    assert all(torch.equal(first, other) for other in others)


@every_isa
@every_dtype
def test_nan_and_infinity_of_later_tokens_reach_no_earlier_one(dtype, isa):
    shape = (6, 2, 64)
    inputs = draw(100, shape, dtype)
    clean_TD = run_whole(*inputs, shape, isa)
    for part, value in itertools.product(range(3), (float("nan"), float("inf"), float("-inf"))):
        dirty = [tensor.clone() for tensor in inputs]
        dirty[part][80] = value
        found_TD = run_whole(*dirty, shape, isa)
        assert torch.equal(found_TD[:80], clean_TD[:80])
        assert not found_TD[80].isfinite().any()
    assert torch.equal(found_TD[81:, :1].isfinite(), torch.zeros(19, 1, dtype=torch.bool))


@every_isa
def test_scores_that_would_overflow_an_exponential_are_weighed(isa):
    shape = (1, 1, 2)
    q_TD, v_TC = torch.full((2, 2), 1e4), torch.tensor([[1.0, 2], [3, 4]])
    k_TC = torch.tensor([[1e4, 1e4], [-1e4, -1e4]])
    assert torch.equal(run_whole(q_TD, k_TC, v_TC, shape, isa), v_TC[[0, 0]])
    assert torch.equal(run_whole(q_TD, k_TC.flip(0), v_TC, shape, isa), v_TC)


@every_isa
def test_gradients_are_those_of_the_reference(isa):
    shape, lengths = (6, 2, 16), (70, 1, 20)
    ours = [tensor.requires_grad_() for tensor in draw(91, shape, torch.float32)]
    theirs = [tensor.detach().clone().requires_grad_() for tensor in ours]
    attn, rotation = AttnInput.without_cache(lengths), rotation_of(torch.arange(91), 16)
    native.attend(native.plan_attention(attn), 0, *ours, rotation, isa=isa).square().sum().backward()
    plan = reference.plan_attention(attn, dtype=torch.float32, device=torch.device("cpu"))
    reference.attend_turned(plan, 0, *theirs, rotation).square().sum().backward()
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our.grad, their.grad, rtol=1e-4, atol=1e-5)


def test_what_does_not_fit_is_refused():
    shape = (4, 2, 8)
    q_TD, k_TC, v_TC = draw(5, shape, torch.float32)
    for bad in ((q_TD, k_TC.bfloat16(), v_TC), (q_TD, k_TC[:4], v_TC), (q_TD, k_TC, v_TC[:, :8])):
        with pytest.raises(UsageError):
            run_whole(*bad, shape, ISAS[0])
    pages = Pages(shape, torch.float32, seed=0)
    with pytest.raises(Unsupported, match="gradient"):
        pages.step({0: 5}, {0: [q_TD.requires_grad_(), k_TC, v_TC]}, shape, ISAS[0])
    attn = AttnInput((0, 1), (1,), pages.cache, torch.tensor([10**6]), torch.tensor([[0]]))
    with pytest.raises(AssertionError):
        native.plan_attention(attn)
