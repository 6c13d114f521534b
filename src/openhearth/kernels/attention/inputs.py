"""How a pack of tokens from many sequences sees its keys and values.

The same record serves prefill, chunked prefill, decode (with a paged cache) and training (without):
a model's forward never knows which one it runs in.
"""

# T packed tokens, S sequences in the pack, P pages per sequence (padded), N pages in the cache,
# B tokens per page, K kv heads, E head size

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class KvCache:
    """Paged keys and values of every layer.

    keys, values: one tensor [N, B, K, E] per layer.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    @property
    def page_size(self) -> int:
        """Token slots of a page."""
        return self.keys[0].shape[1]


@dataclass(frozen=True)
class AttnInput:
    """Layout of one pack.

    query_starts: S + 1 ascending ints; sequence s owns tokens query_starts[s]:query_starts[s + 1]
    of the pack, in order, the last tokens of its context so far. context_lens: S ints, keys of the
    sequence after this step (cached ones and those of this pack).
    cache: None means keys are those of the pack alone (training, scoring); then context_lens equal
    the query lengths and the two tensors below are None.
    slots_T: int64 [T], page * page_size + offset where each token's key and value are written.
    page_table_SP: int64 [S, P], pages of each sequence in order, padded with 0.

    Example, two sequences, one decoding at length 9 and one prefilling 3 tokens, page size 8:
    ``AttnInput((0, 1, 4), (9, 3), cache, tensor([8 * 2 + 0, 40, 41, 42]), tensor([[1, 2], [5, 0]]))``.
    """

    query_starts: tuple[int, ...]
    context_lens: tuple[int, ...]
    cache: KvCache | None = None
    slots_T: Tensor | None = None
    page_table_SP: Tensor | None = None

    @classmethod
    def without_cache(cls, lengths: tuple[int, ...]) -> AttnInput:
        """Layout of whole sequences packed one after the other, as training sees them."""
        starts = [0]
        for length in lengths:
            starts.append(starts[-1] + length)
        return cls(query_starts=tuple(starts), context_lens=tuple(lengths))
