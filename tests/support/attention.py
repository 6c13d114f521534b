"""Rows of queries, keys and values, and a paged cache of one layer driven by hand."""

import itertools
import random

import torch

from openhearth.kernels.attention import native
from openhearth.kernels.attention.cache import part_size
from openhearth.kernels.attention.inputs import PLAIN, AttnInput, KvCache
from openhearth.kernels.rope.reference import compute_rotation, inverse_frequencies
from openhearth.spec import RopeSpec


def rotation_of(positions, rotary_dim):
    return compute_rotation(RopeSpec(), inverse_frequencies(RopeSpec(), rotary_dim), positions)


def draw(length, shape, dtype, seed=0):
    num_heads, num_kv_heads, head_dim = shape
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(length, heads * head_dim, generator=generator).to(dtype)
            for heads in (num_heads, num_kv_heads, num_kv_heads)]


def run_whole(q_TD, k_TC, v_TC, shape, isa, options=PLAIN, kv_dtype=None, rotary_dim=None):
    plan = native.plan_attention(AttnInput.without_cache((len(q_TD),), kv_dtype))
    rotation = rotation_of(torch.arange(len(q_TD)), rotary_dim or shape[2])
    return native.attend(plan, 0, q_TD, k_TC, v_TC, rotation, options, isa=isa)


class Pages:
    """A cache of one layer with sequences on pages drawn at random; unwritten slots hold NaN."""

    def __init__(self, shape, dtype, seed, page_size=7, num_pages=120, options=PLAIN):
        size = (2, num_pages, page_size, shape[1], part_size(shape[2], dtype))
        # Bytes of -1 are NaN where an int8 cache has its scales.
        pool = torch.full(size, -1 if dtype == torch.int8 else float("nan"), dtype=dtype)
        self.cache, self.page_size, self.options = KvCache((pool[0],), (pool[1],)), page_size, options
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
        out_TD = native.attend(native.plan_attention(attn), 0, *rows, rotation, self.options, isa=isa)
        return dict(zip(chunks, out_TD.split(list(chunks.values())), strict=True))

    def run(self, inputs, shape, isa, seed, sizes=(0, 1, 1, 2, 13, 70)):
        """Append all rows of all sequences in chunks drawn at random. Returns {sequence: outputs}."""
        rng, found = random.Random(seed), {s: [] for s in inputs}
        lengths = {s: len(rows[0]) for s, rows in inputs.items()}
        while any(self.lens.get(s, 0) < length for s, length in lengths.items()):
            chunks = {s: min(rng.choice(sizes), length - self.lens.get(s, 0))
                      for s, length in lengths.items()}
            chunks = {s: count for s, count in chunks.items() if count}
            if chunks:
                for s, out in self.step(chunks, inputs, shape, isa).items():
                    found[s].append(out)
        return {s: torch.cat(parts) for s, parts in found.items()}
