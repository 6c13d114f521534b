"""Attention of whole sequences in padded blocks, in torch: what gradients are computed through.

torch's attention has a backward pass that takes 4 ms for 70 bfloat16 tokens of 9 heads on one AMX core (torch
2.13), goes through a pack one sequence at a time, and cannot share a prompt's keys. Here sequences of similar
length are padded to one block each; short ones are plain products, softmax and mask in float32, long ones go
through torch's attention one by one.

Does not: read a cache, or take options but the scale; `reference.py` does both.
"""

# T packed tokens, S sequences of a block, Q queries and L keys of its longest, M = S * Q, N = S * L,
# H heads, K kv heads, G = H / K, R = G * Q, E head size

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from openhearth.kernels.attention.inputs import AttnInput
from openhearth.kernels.rope.reference import Rotation, apply_rope

MAX_LENGTH = 160
"""Keys of a short sequence. Measured on one AMX core, 9 heads of 64, packs of 980 tokens: 37 ms instead of
116 for sequences of 70 tokens, 79 instead of 104 for 140, 136 instead of 104 for 250."""
MAX_SHARED_LENGTH = 256
"""Keys of a short sequence that shares its prompt, where torch's attention needs a mask. One core, packs of
760 to 940 tokens with a prompt of 36, processor time: 37 ms instead of 51 for completions of 127 tokens,
51 instead of 89 for 180, 46 instead of 48 for 220."""
_LEAST_SHARE = 0.75
"""Of a block's longest sequence that its shortest has."""


@dataclass(frozen=True)
class _Block:
    """rows_M, rows_N: the pack's row of every query and key place; places_T: query places that are tokens.

    sees_S1QL: which keys a query sees.
    """

    num_queries: int
    num_keys: int
    rows_M: Tensor
    rows_N: Tensor
    places_T: Tensor
    sees_S1QL: Tensor


def covers(attn: AttnInput) -> bool:
    """Whether gradients go through here: the pack shares prompts, or is one of short whole sequences."""
    longest = max(attn.context_lens, default=0)
    is_short = attn.cache is None and attn.kv_dtype is None and 0 < longest <= MAX_LENGTH
    return attn.parents is not None or is_short


def attend_turned(attn: AttnInput, q_TD: Tensor, k_TC: Tensor, v_TC: Tensor, rotation: Rotation,
                  scale: float | None) -> Tensor:
    """As `reference.attend_turned` for such a pack, without options but the scale."""
    head_dim = rotation.cos_T1E.shape[-1]
    num_heads, num_kv_heads = q_TD.shape[1] // head_dim, k_TC.shape[1] // head_dim
    q_and_k = torch.cat((q_TD, k_TC), 1).unflatten(1, (-1, head_dim))
    q_THE, k_TKE = apply_rope(q_and_k, rotation).split((num_heads, num_kv_heads), 1)
    v_TKE = v_TC.unflatten(1, (-1, head_dim))
    blocks, order_T = _cut(attn.query_starts, attn.parents)
    longest = MAX_LENGTH if attn.parents is None else MAX_SHARED_LENGTH
    parts = []
    for block in blocks:
        attend = _attend_short if block.num_keys <= longest else _attend_long
        out_SHQE = attend(block, _lay_out(q_THE, block.rows_M, block.num_queries),
                          *(_lay_out(one, block.rows_N, block.num_keys) for one in (k_TKE, v_TKE)),
                          scale or head_dim ** -0.5)
        out_MD = out_SHQE.transpose(1, 2).flatten(0, 1).flatten(1)
        parts.append(out_MD.index_select(0, block.places_T.to(out_MD.device)).to(q_TD.dtype))
    return torch.cat(parts).index_select(0, order_T.to(q_TD.device))


def _attend_short(block: _Block, q_SHQE: Tensor, k_SKLE: Tensor, v_SKLE: Tensor, scale: float) -> Tensor:
    q_SKRE = q_SHQE.float().unflatten(1, (k_SKLE.shape[1], -1)).flatten(2, 3)  # heads that share keys
    scores_SKRL = q_SKRE @ k_SKLE.float().transpose(2, 3) * scale
    is_hidden = ~block.sees_S1QL[:, :, None].to(scores_SKRL.device)
    scores_SKGQL = scores_SKRL.unflatten(2, (-1, block.num_queries)).masked_fill(is_hidden, float("-inf"))
    out_SKRE = scores_SKGQL.softmax(-1).flatten(2, 3) @ v_SKLE.float()
    return out_SKRE.unflatten(2, (-1, block.num_queries)).flatten(1, 2)


def _attend_long(block: _Block, q_SHQE: Tensor, k_SKLE: Tensor, v_SKLE: Tensor, scale: float) -> Tensor:
    group = q_SHQE.shape[1] // k_SKLE.shape[1]
    k_SHLE, v_SHLE = (one.repeat_interleave(group, 1) for one in (k_SKLE, v_SKLE))
    zeros_S1QL = torch.zeros(block.sees_S1QL.shape, dtype=q_SHQE.dtype)
    mask_S1QL = zeros_S1QL.masked_fill_(~block.sees_S1QL, float("-inf")).to(q_SHQE.device)
    return torch.cat([scaled_dot_product_attention(*one, scale=scale) for one in zip(
        *(part.split(1) for part in (q_SHQE, k_SHLE, v_SHLE, mask_S1QL)), strict=True)])


def _lay_out(rows_THE: Tensor, rows_N: Tensor, length: int) -> Tensor:
    """Return [S, H, length, E]."""
    return rows_THE.index_select(0, rows_N.to(rows_THE.device)).unflatten(0, (-1, length)).transpose(1, 2)


@functools.lru_cache(maxsize=8)
def _cut(query_starts: tuple[int, ...], parents: tuple[int | None, ...] | None) -> tuple[tuple[_Block, ...],
                                                                                         Tensor]:
    """Return the blocks of a pack, and where each of its rows is in their joined outputs."""
    lengths = tuple(stop - start for start, stop in itertools.pairwise(query_starts))
    attn = (AttnInput.without_cache(lengths) if parents is None
            else AttnInput.after_prompts(lengths, parents))
    keys = attn.key_rows()
    sizes = [(len(rows), length) for rows, length in zip(keys, lengths, strict=True)]
    groups: list[list[int]] = []
    for place in sorted((place for place, length in enumerate(lengths) if length),
                        key=lambda place: sizes[place], reverse=True):
        if not groups or any(mine < _LEAST_SHARE * most
                             for mine, most in zip(sizes[place], sizes[groups[-1][0]], strict=True)):
            groups.append([])
        groups[-1].append(place)
    blocks = [_block([keys[place] for place in group], [lengths[place] for place in group])
              for group in groups]
    rows = torch.cat([block.rows_M[block.places_T] for block in blocks])
    order_T = torch.empty(query_starts[-1], dtype=torch.int64)
    order_T[rows] = torch.arange(query_starts[-1])
    return tuple(blocks), order_T


def _block(keys: list[Tensor], num_queries: list[int]) -> _Block:
    """Pad sequences with places that repeat their last row; no query sees such a key."""
    most_keys, most_queries = max(map(len, keys)), max(num_queries)
    rows_N = torch.stack([rows[torch.arange(most_keys).clamp(max=len(rows) - 1)] for rows in keys])
    counts_S1 = torch.tensor([len(rows) for rows in keys])[:, None]
    queries_S1 = torch.tensor(num_queries)[:, None]
    places_Q, places_L = torch.arange(most_queries), torch.arange(most_keys)
    # Queries are the last rows of the keys; a padded one repeats the last.
    positions_SQ = counts_S1 - queries_S1 + torch.minimum(places_Q, queries_S1 - 1)
    is_token_SQ = places_Q < queries_S1
    return _Block(most_queries, most_keys, rows_N.gather(1, positions_SQ).flatten(), rows_N.flatten(),
                  is_token_SQ.flatten().nonzero()[:, 0], (places_L <= positions_SQ[:, :, None])[:, None])
