"""Attention of a pack of short sequences as a few products in float32: what its gradient is computed through.

torch's attention has a backward pass that takes 4 ms for 70 bfloat16 tokens of 9 heads on one AMX core (torch
2.13), and goes through a pack one sequence at a time. Here sequences of similar length are padded to one
block each, and autograd differentiates plain products, softmax and mask.

Does not: read a cache, or take options; `reference.py` does both.
"""

# T packed tokens, S sequences of a block, L tokens of its longest, N = S * L, H heads, K kv heads,
# G = H / K, R = G * L, E head size

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from openhearth.kernels.attention.inputs import AttnInput
from openhearth.kernels.rope.reference import Rotation, apply_rope

MAX_LENGTH = 160
"""Measured on one AMX core, 9 heads of 64, packs of 980 tokens: 37 ms instead of 116 for sequences of 70,
79 instead of 104 for 140, 136 instead of 104 for 250."""
_LEAST_SHARE = 0.75
"""Of a block's longest sequence that its shortest has."""


@dataclass(frozen=True)
class _Block:
    """rows_N: the pack's row of every place of the block; places_T: the places that are tokens.

    hidden_S1LL: which keys a place does not see.
    """

    size: int
    rows_N: Tensor
    places_T: Tensor
    hidden_S1LL: Tensor


def covers(attn: AttnInput) -> bool:
    """Whether the pack is one of short whole sequences."""
    longest = max(attn.context_lens, default=0)
    return attn.cache is None and attn.kv_dtype is None and 0 < longest <= MAX_LENGTH


def attend_turned(attn: AttnInput, q_TD: Tensor, k_TC: Tensor, v_TC: Tensor, rotation: Rotation,
                  scale: float | None) -> Tensor:
    """As `reference.attend_turned` for such a pack, without options but the scale."""
    head_dim = rotation.cos_T1E.shape[-1]
    num_heads, num_kv_heads = q_TD.shape[1] // head_dim, k_TC.shape[1] // head_dim
    q_and_k = torch.cat((q_TD, k_TC), 1).unflatten(1, (-1, head_dim))
    q_THE, k_TKE = apply_rope(q_and_k, rotation).split((num_heads, num_kv_heads), 1)
    v_TKE = v_TC.unflatten(1, (-1, head_dim))
    blocks, order_T = _blocks(attn.query_starts)
    parts = []
    for block in blocks:
        q_SHLE, k_SKLE, v_SKLE = (_lay_out(one, block) for one in (q_THE, k_TKE, v_TKE))
        q_SKRE = q_SHLE.unflatten(1, (num_kv_heads, -1)).flatten(2, 3)  # rows of all heads that share keys
        scores_SKRL = q_SKRE @ k_SKLE.transpose(2, 3) * (scale or head_dim ** -0.5)
        scores_SKGLL = scores_SKRL.unflatten(2, (-1, block.size))
        weights_SKGLL = scores_SKGLL.masked_fill(block.hidden_S1LL[:, :, None], float("-inf")).softmax(-1)
        out_SHLE = (weights_SKGLL.flatten(2, 3) @ v_SKLE).unflatten(2, (-1, block.size)).flatten(1, 2)
        parts.append(out_SHLE.transpose(1, 2).flatten(0, 1).flatten(1).index_select(0, block.places_T))
    return torch.cat(parts).index_select(0, order_T).to(q_TD.dtype)


def _lay_out(rows_THE: Tensor, block: _Block) -> Tensor:
    """Return float32 [S, H, L, E]."""
    return rows_THE.index_select(0, block.rows_N).float().unflatten(0, (-1, block.size)).transpose(1, 2)


@functools.lru_cache(maxsize=8)
def _blocks(query_starts: tuple[int, ...]) -> tuple[tuple[_Block, ...], Tensor]:
    """Return the blocks of a pack, and where each of its rows is in their joined outputs."""
    spans = sorted(((stop - start, start) for start, stop in itertools.pairwise(query_starts)
                    if stop > start), key=lambda span: (-span[0], span[1]))
    groups: list[list[tuple[int, int]]] = []
    for span in spans:
        if not groups or span[0] < _LEAST_SHARE * groups[-1][0][0]:
            groups.append([])
        groups[-1].append(span)
    blocks, rows = [], []
    for group in groups:
        size = group[0][0]
        lengths_S, starts_S = torch.tensor(group).unbind(1)
        places_L = torch.arange(size)
        is_token_SL = places_L < lengths_S[:, None]
        rows_SL = starts_S[:, None] + torch.minimum(places_L, lengths_S[:, None] - 1)
        sees_SLL = (places_L <= places_L[:, None]) & is_token_SL[:, None, :]
        blocks.append(_Block(size, rows_SL.flatten(), is_token_SL.flatten().nonzero()[:, 0],
                             ~sees_SLL[:, None]))
        rows.append(rows_SL[is_token_SL])
    order_T = torch.empty(query_starts[-1], dtype=torch.int64)
    order_T[torch.cat(rows)] = torch.arange(query_starts[-1])
    return tuple(blocks), order_T
