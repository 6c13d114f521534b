"""From chunks to tensors."""

from array import array

import torch
from support.decoder import tiny_spec

from openhearth.engine.memory import PagedCache
from openhearth.engine.packing import pack
from openhearth.engine.records import Sampling
from openhearth.engine.scheduler import Chunk
from openhearth.engine.sequence import Sequence

CPU = torch.device("cpu")


def sequence(token_ids, pages):
    return Sequence(0, 0, 0, Sampling(), token_ids, len(token_ids), pages=array("q", pages))


def test_tokens_positions_and_slots_of_decode_and_prefill_lie_side_by_side():
    kv = PagedCache(tiny_spec(), 8, 4, torch.float32, CPU).kv
    decoding = sequence([5, 6, 7, 8, 9], [3, 1])
    prefilling = sequence([10, 11, 12, 13, 14, 15, 16], [6, 2])
    batch = pack([Chunk(decoding, 4, 5), Chunk(prefilling, 2, 6)], kv, CPU)
    assert batch.token_ids_T.tolist() == [9, 12, 13, 14, 15]
    assert batch.positions_T.tolist() == [4, 2, 3, 4, 5]
    assert batch.attn.slots_T.tolist() == [4, 26, 27, 8, 9]
    assert batch.attn.query_starts == (0, 1, 5) and batch.attn.context_lens == (5, 6)
    assert batch.attn.page_table_SP.tolist() == [[3, 1], [6, 2]]
    assert batch.last_rows == (0, 4)
    assert batch.attn.cache is kv


def test_page_tables_are_padded_with_zeros():
    kv = PagedCache(tiny_spec(), 8, 4, torch.float32, CPU).kv
    batch = pack([Chunk(sequence([5], [7]), 0, 1), Chunk(sequence([1] * 9, [4, 5, 6]), 8, 9)], kv, CPU)
    assert batch.attn.page_table_SP.tolist() == [[7, 0, 0], [4, 5, 6]]
    assert batch.attn.slots_T.tolist() == [28, 24]
