"""Paged attention against a slow loop over tokens."""

import dataclasses
import itertools
import random

import pytest
import torch

from openhearth.kernels.attention.inputs import PLAIN, AttnInput, AttnOptions, KvCache
from openhearth.kernels.attention.reference import attend, plan_attention

E = 16


def slow_attention(q_HE, k_LKE, v_LKE, options=PLAIN):
    """One query over all its keys, in float64, head by head."""
    group = q_HE.shape[0] // k_LKE.shape[1]
    rows = []
    for head, q_E in enumerate(q_HE.double()):
        keys, values = (x[-options.window:, head // group].double() for x in (k_LKE, v_LKE))
        scores = keys @ q_E * (options.scale or E ** -0.5)
        if options.soft_cap:
            scores = options.soft_cap * torch.tanh(scores / options.soft_cap)
        if options.sinks_H is not None:
            scores = torch.cat((scores, options.sinks_H[head:head + 1].double()))
        rows.append(torch.softmax(scores, 0)[:len(values)] @ values)
    return torch.cat(rows)


OPTIONS = {"plain": AttnOptions(), "window": AttnOptions(window=5), "cap": AttnOptions(soft_cap=1.0),
           "scale": AttnOptions(scale=0.6),
           "all": AttnOptions(window=6, soft_cap=2.0, scale=0.4, sinks_H=torch.tensor([-1.0, 0, 1, 2]))}


@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(4, 4), (6, 2), (4, 1)])
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("seed", range(4))
def test_packs_of_prefill_chunks_and_decodes_equal_a_loop_over_tokens(num_heads, num_kv_heads, name, seed):
    rng = random.Random(seed)
    torch.manual_seed(seed)
    options = OPTIONS[name]
    if options.sinks_H is not None:
        options = dataclasses.replace(options, sinks_H=torch.linspace(-1, 2, num_heads))
    page_size, num_pages = 4, 64
    pages = list(range(1, num_pages))
    if seed % 2:
        rng.shuffle(pages)
    shape = (num_pages, page_size, num_kv_heads, E)
    cache = KvCache(*[tuple(torch.full(shape, float("nan")) for _ in range(2)) for _ in range(2)])
    sequences = [(rng.choice([0, 1, 3, 8, 17]), rng.choice([1, 1, 1, 2, 5, 9])) for _ in range(6)]
    tables, slots, past, new, starts = [], [], [], [], [0]
    for cached, queries in sequences:
        length = cached + queries
        table = [pages.pop(0) for _ in range(-(-length // page_size))]
        where = torch.tensor([table[i // page_size] * page_size + i % page_size for i in range(length)])
        k, v = torch.randn(length, num_kv_heads, E), torch.randn(length, num_kv_heads, E)
        cache.keys[1].flatten(0, 1)[where[:cached]] = k[:cached]
        cache.values[1].flatten(0, 1)[where[:cached]] = v[:cached]
        tables.append(table)
        slots.append(where[cached:])
        past.append((k, v))
        new.append((torch.randn(queries, num_heads, E), k[cached:], v[cached:]))
        starts.append(starts[-1] + queries)
    width = max(map(len, tables))
    attn = AttnInput(tuple(starts), tuple(sum(pair) for pair in sequences), cache, torch.cat(slots),
                     torch.tensor([table + [0] * (width - len(table)) for table in tables]))
    q, k, v = (torch.cat(parts) for parts in zip(*new, strict=True))
    out = attend(plan_attention(attn, dtype=torch.float32, device=q.device), 1, q, k, v, options)
    want = torch.stack([
        slow_attention(new[s][0][i], past[s][0][:cached + i + 1], past[s][1][:cached + i + 1], options)
        for s, (cached, queries) in enumerate(sequences) for i in range(queries)])
    torch.testing.assert_close(out.double(), want, rtol=0, atol=1e-5)
    assert all(layer[0].isnan().all() for layer in (cache.keys, cache.values)), "only layer 1 may be written"


def test_without_a_cache_sequences_do_not_see_each_other():
    torch.manual_seed(0)
    lengths = (5, 1, 8)
    q, k, v = torch.randn(14, 4, E), torch.randn(14, 2, E), torch.randn(14, 2, E)
    out = attend(plan_attention(AttnInput.without_cache(lengths), dtype=q.dtype, device=q.device), 0, q, k, v)
    starts = [0, *itertools.accumulate(lengths)]
    want = torch.stack([slow_attention(q[t], k[start:t + 1], v[start:t + 1])
                        for start, stop in itertools.pairwise(starts) for t in range(start, stop)])
    torch.testing.assert_close(out.double(), want, rtol=0, atol=1e-5)
