"""Attention on the CPU: native/attention.h and the rotary part of native/rows.h, callable under autograd.

A query row has the same bits in prefill, in any chunking of it, in decode and in training, alone or packed,
on any pages and with any number of threads: keys are met in one order, in blocks counted from position 0.
Everything is float32 between the turned queries and keys, rounded to their type as the reference rounds
them, and the rounding of the output. With u = 2^-24, L keys and finite scores, an output is within
(2 (E + 2) max|q||k| / sqrt(E) + 2 L + 40) u max|v| of the exact one: the error of a score enters the
exponential as it is, the rest are two sums and their quotient (Higham, Accuracy and Stability of Numerical
Algorithms, 3.1).

Does not: run on other devices, or give gradients through a cache.
"""

# T packed tokens, S sequences, P pages per sequence, H heads, K kv heads, E head size, D = H * E, C = K * E

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from openhearth.errors import Unsupported
from openhearth.kernels import recompute, select
from openhearth.kernels.attention import reference
from openhearth.kernels.attention.inputs import AttnInput
from openhearth.kernels.rope.reference import Rotation
from openhearth.kernels.rows import as_rows


@dataclass(frozen=True)
class NativePlan:
    """A pack's layout with its numbers where the kernel can read them. Integers are int64.

    Example: ``plan_attention(AttnInput.without_cache((5, 1))).query_starts.tolist() == [0, 5, 6]``.
    """

    attn: AttnInput
    query_starts: Tensor
    context_lens_S: Tensor
    slots_T: Tensor | None
    page_table_SP: Tensor | None


def plan_attention(attn: AttnInput) -> NativePlan:
    """Return the plan of one pack; asserts that every slot and page lies inside the cache."""
    starts, lens = attn.query_starts, attn.context_lens
    num_queries = [stop - start for start, stop in itertools.pairwise(starts)]
    assert starts[0] == 0 and len(num_queries) == len(lens) and min(num_queries, default=1) >= 0
    slots_T = pages_SP = None
    if attn.cache is None:
        assert num_queries == list(lens), "without a cache keys are the pack's own"
    else:
        slots_T = attn.slots_T.to("cpu", torch.int64).contiguous()
        pages_SP = attn.page_table_SP.to("cpu", torch.int64).contiguous()
        num_pages, page_size = attn.cache.keys[0].shape[:2]
        assert all(n <= length for n, length in zip(num_queries, lens, strict=True))
        assert slots_T.shape == (starts[-1],) and pages_SP.shape[0] == len(lens)
        assert pages_SP.shape[1] * page_size >= max(lens, default=0)
        assert _is_inside(slots_T, num_pages * page_size) and _is_inside(pages_SP, num_pages)
    return NativePlan(attn, torch.tensor(starts), torch.tensor(lens, dtype=torch.int64), slots_T, pages_SP)


def attend(plan: NativePlan, layer: int, q_TD: Tensor, k_TC: Tensor, v_TC: Tensor, rotation: Rotation, *,
           isa: str | None = None) -> Tensor:
    """As `reference.attend_turned`; all of one type, bfloat16 or float32, on the CPU.

    Raises: UsageError for shapes and types; Unsupported for a gradient through a cache.
    """
    if plan.attn.cache is not None and torch.is_grad_enabled() and q_TD.requires_grad:
        raise Unsupported("attention over a cache has no gradient", why="training runs without one",
                          hint="wrap the call in torch.inference_mode()")
    return recompute.call(functools.partial(_attend, plan, layer, rotation, isa),
                          functools.partial(_attend_by_reference, plan.attn, rotation), q_TD, k_TC, v_TC)


def _attend(plan: NativePlan, layer: int, rotation: Rotation, isa: str | None, q_TD: Tensor, k_TC: Tensor,
            v_TC: Tensor) -> Tensor:
    dtype, width, kv_width = q_TD.dtype, q_TD.shape[1], k_TC.shape[1]
    cos_T1E, sin_T1E = rotation
    head_dim = cos_T1E.shape[2]
    assert cos_T1E.shape == sin_T1E.shape == (plan.attn.query_starts[-1], 1, head_dim)
    assert cos_T1E.dtype == sin_T1E.dtype == torch.float32
    assert cos_T1E.is_contiguous() and sin_T1E.is_contiguous()
    assert head_dim % 2 == kv_width % head_dim == width % kv_width == 0
    num_rows = cos_T1E.shape[0]
    q_TD, k_TC = as_rows(q_TD, dtype, num_rows, width), as_rows(k_TC, dtype, num_rows, kv_width)
    v_TC = as_rows(v_TC, dtype, num_rows, kv_width)
    turned_TD, out_TD = torch.empty(num_rows, width, dtype=dtype), torch.empty(num_rows, width, dtype=dtype)
    cache = plan.attn.cache
    if cache is None:
        keys, values = torch.empty(2, num_rows, kv_width, dtype=dtype)
        pages = (0, 0, 0, 1)
    else:
        keys, values = cache.keys[layer], cache.values[layer]
        assert keys.dtype == values.dtype == dtype and keys.is_contiguous() and values.is_contiguous()
        assert keys.shape[2:].numel() == kv_width
        pages = (plan.slots_T.data_ptr(), plan.page_table_SP.data_ptr(), plan.page_table_SP.shape[1],
                 cache.page_size)
    slots, page_table, pages_per_sequence, page_size = pages
    select.native().attend(
        select.isa_number(isa), q_TD.data_ptr(), k_TC.data_ptr(), v_TC.data_ptr(), q_TD.stride(0),
        k_TC.stride(0), v_TC.stride(0), cos_T1E.data_ptr(), sin_T1E.data_ptr(), slots, turned_TD.data_ptr(),
        keys.data_ptr(), values.data_ptr(), out_TD.data_ptr(), page_table, pages_per_sequence, page_size,
        plan.query_starts.data_ptr(), plan.context_lens_S.data_ptr(), len(plan.attn.context_lens), num_rows,
        width // head_dim, kv_width // head_dim, head_dim, head_dim ** -0.5, dtype == torch.bfloat16)
    return out_TD


def _attend_by_reference(attn: AttnInput, rotation: Rotation, q_TD: Tensor, k_TC: Tensor,
                         v_TC: Tensor) -> Tensor:
    plan = reference.plan_attention(attn, dtype=q_TD.dtype, device=q_TD.device)
    return reference.attend_turned(plan, 0, q_TD, k_TC, v_TC, rotation)


def _is_inside(indices: Tensor, end: int) -> bool:
    return indices.numel() == 0 or (int(indices.min()) >= 0 and int(indices.max()) < end)
