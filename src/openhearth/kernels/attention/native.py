"""Attention on the CPU: native/attention.h and the rotary part of native/rows.h, callable under autograd.

A query row has the same bits in prefill, in any chunking of it, in decode and in training, alone or packed,
on any pages and with any number of threads, for one type of cache: keys are met in one order, in blocks
counted from position 0. With u = 2^-24, L keys and finite scores, an output is within
(2 (E + 2) max|q||k| scale + 2 L + 40) u max|v| of the exact one, plus the rounding of the output: the error
of a score enters the exponential as it is, the rest are two sums and their quotient (Higham, Accuracy and
Stability of Numerical Algorithms, 3.1). That holds on AVX2 and with float32 rows. With AVX-512 or AMX and
bfloat16 rows over a bfloat16 or int8 cache, weights are rounded to bfloat16 and their sum is that of the
rounded ones: 2^-7 max|v| more. The int8 cache has the error stated in `cache`. Gradients
(native/gradients.h) are computed in float32 and rounded once, where weights are rounded to bfloat16 with
gradients of scores rounded so too; with options beside the scale they are those of the reference.

Does not: run on other devices, or give gradients through a cache or through int8 keys.
"""

# T packed tokens, S sequences, P pages per sequence, H heads, K kv heads, E head size, D = H * E, C = K * E

from __future__ import annotations

import dataclasses
import functools
import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from openhearth.errors import Unsupported
from openhearth.kernels import recompute, select
from openhearth.kernels.attention import reference
from openhearth.kernels.attention.cache import part_size
from openhearth.kernels.attention.inputs import PLAIN, AttnInput, AttnOptions
from openhearth.kernels.rope.reference import Rotation
from openhearth.kernels.rows import as_rows

CACHE_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}
"""Numbers of native/cache.h."""


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
        assert attn.parents or num_queries == list(lens), "without a cache keys are the pack's own"
        if attn.parents:
            pages_SP = torch.nn.utils.rnn.pad_sequence(attn.key_rows(), batch_first=True)
    else:
        slots_T = attn.slots_T.to("cpu", torch.int64).contiguous()
        pages_SP = attn.page_table_SP.to("cpu", torch.int64).contiguous()
        num_pages, page_size = attn.cache.keys[0].shape[:2]
        assert all(n <= length for n, length in zip(num_queries, lens, strict=True))
        assert slots_T.shape == (starts[-1],) and pages_SP.shape[0] == len(lens)
        assert pages_SP.shape[1] * page_size >= max(lens, default=0)
        assert _is_inside(slots_T, num_pages * page_size) and _is_inside(pages_SP, num_pages)
    return NativePlan(attn, torch.tensor(starts), torch.tensor(lens, dtype=torch.int64), slots_T, pages_SP)


def attend(plan: NativePlan, layer: int, q_TD: Tensor, k_TC: Tensor, v_TC: Tensor, rotation: Rotation,
           options: AttnOptions = PLAIN, *, isa: str | None = None) -> Tensor:
    """As `reference.attend_turned`; rows of one type, bfloat16 or float32, on the CPU, over any cache.

    Raises: UsageError for shapes and types; Unsupported for a gradient through a cache or int8 keys.
    """
    sinks = () if options.sinks_H is None else (options.sinks_H,)
    if torch.is_grad_enabled() and any(one.requires_grad for one in (q_TD, k_TC, v_TC, *sinks)):
        if plan.attn.cache is not None:
            raise Unsupported("attention over a cache has no gradient", why="training runs without one",
                              hint="wrap the call in torch.inference_mode()")
        if plan.attn.kv_dtype == torch.int8:
            raise Unsupported("int8 keys and values have no gradient", why="rounding to bytes has none",
                              hint="train with a bfloat16 or float32 cache type")
        rest = dataclasses.replace(options, scale=None, head_dim=None, are_values_in_keys=False)
        if rest == PLAIN and plan.attn.kv_dtype is None:
            return _Attend.apply(q_TD, k_TC, v_TC, plan, rotation, options, isa)
    return recompute.call(functools.partial(_attend, plan, layer, rotation, options, isa),
                          functools.partial(_attend_by_reference, plan.attn, rotation, options),
                          q_TD, k_TC, v_TC, *sinks)


class _Attend(torch.autograd.Function):
    """Attention without options but the scale, within a pack: forward and backward native."""

    @staticmethod
    def forward(ctx, q_TD, k_TC, v_TC, plan, rotation, options, isa):
        ctx.save_for_backward(q_TD, k_TC, v_TC)
        ctx.plan, ctx.rotation, ctx.options, ctx.isa = plan, rotation, options, isa
        return _attend(plan, 0, rotation, options, isa, q_TD, k_TC, v_TC)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_TD):
        plan, dtype = ctx.plan, grad_TD.dtype
        num_rows, rotary_dim = plan.attn.query_starts[-1], ctx.rotation.cos_T1E.shape[2]
        rows = [as_rows(one, dtype, num_rows, one.shape[1]) for one in (*ctx.saved_tensors, grad_TD)]
        q_TD, k_TC, v_TC, grad_TD = rows
        grads = [torch.empty(one.shape, dtype=dtype) for one in (q_TD, k_TC, v_TC)]
        head_dim = ctx.options.head_dim or rotary_dim
        parents_S = None
        if plan.attn.parents is not None:
            parents_S = torch.tensor([-1 if one is None else one for one in plan.attn.parents])
        select.native().attend_grad(
            select.isa_number(ctx.isa), *(one.data_ptr() for one in rows), *(one.stride(0) for one in rows),
            *(one.data_ptr() for one in grads), *_rotation_addresses(ctx.rotation, num_rows, plan),
            rotary_dim, plan.query_starts.data_ptr(), 0 if parents_S is None else parents_S.data_ptr(),
            len(plan.attn.context_lens), q_TD.shape[1] // head_dim, k_TC.shape[1] // head_dim, head_dim,
            ctx.options.scale or head_dim ** -0.5, dtype == torch.bfloat16)
        return *grads, None, None, None, None


def _attend(plan: NativePlan, layer: int, rotation: Rotation, options: AttnOptions, isa: str | None,
            q_TD: Tensor, k_TC: Tensor, v_TC: Tensor, sinks_H: Tensor | None = None) -> Tensor:
    dtype, width, kv_width = q_TD.dtype, q_TD.shape[1], k_TC.shape[1]
    num_rows, rotary_dim = plan.attn.query_starts[-1], rotation.cos_T1E.shape[2]
    head_dim = options.head_dim or rotary_dim
    assert rotary_dim % 2 == kv_width % head_dim == width % kv_width == 0 and rotary_dim <= head_dim
    cos, sin, positions = _rotation_addresses(rotation, num_rows, plan)
    q_TD, k_TC = as_rows(q_TD, dtype, num_rows, width), as_rows(k_TC, dtype, num_rows, kv_width)
    v_TC = as_rows(v_TC, dtype, num_rows, kv_width)
    turned_TD, out_TD = torch.empty(num_rows, width, dtype=dtype), torch.empty(num_rows, width, dtype=dtype)
    num_heads, num_kv_heads, cache = width // head_dim, kv_width // head_dim, plan.attn.cache
    if cache is None:
        cache_dtype = plan.attn.kv_dtype or dtype
        size = part_size(head_dim, cache_dtype)
        keys = torch.empty(num_rows, num_kv_heads, size, dtype=cache_dtype)
        values = keys if options.are_values_in_keys else torch.empty_like(keys)
        pages = (0, 0, 0, 1)
        if plan.page_table_SP is not None:  # every row of the pack is a page of its own
            pages = (0, plan.page_table_SP.data_ptr(), plan.page_table_SP.shape[1], 1)
    else:
        keys, values, cache_dtype = cache.keys[layer], cache.values[layer], cache.dtype
        assert keys.dtype == values.dtype and keys.is_contiguous() and values.is_contiguous()
        assert (keys.data_ptr() == values.data_ptr()) == options.are_values_in_keys
        assert keys.shape[2:] == values.shape[2:] == (num_kv_heads, part_size(head_dim, cache_dtype))
        pages = (plan.slots_T.data_ptr(), plan.page_table_SP.data_ptr(), plan.page_table_SP.shape[1],
                 cache.page_size)
    slots, page_table, pages_per_sequence, page_size = pages
    if sinks_H is not None:
        assert sinks_H.shape == (num_heads,) and sinks_H.device.type == "cpu"
        sinks_H = sinks_H.detach().to(torch.float32).contiguous()
    select.native().attend(
        select.isa_number(isa), q_TD.data_ptr(), k_TC.data_ptr(), v_TC.data_ptr(), q_TD.stride(0),
        k_TC.stride(0), v_TC.stride(0), cos, sin, positions, rotary_dim, slots, turned_TD.data_ptr(),
        keys.data_ptr(), values.data_ptr(), out_TD.data_ptr(), page_table, pages_per_sequence, page_size,
        plan.query_starts.data_ptr(), plan.context_lens_S.data_ptr(), len(plan.attn.context_lens), num_rows,
        num_heads, num_kv_heads, head_dim, options.scale or head_dim ** -0.5, options.soft_cap,
        options.window, 0 if sinks_H is None else sinks_H.data_ptr(), dtype == torch.bfloat16,
        CACHE_TYPES[cache_dtype])
    return out_TD


def _rotation_addresses(rotation: Rotation, num_rows: int, plan: NativePlan) -> tuple[int, int, int]:
    """Where cosines, sines and positions lie; positions are 0 where every row has its own angles."""
    cos_T1E, sin_T1E, positions_T = rotation
    assert cos_T1E.shape == sin_T1E.shape and cos_T1E.shape[1] == 1
    assert cos_T1E.dtype == sin_T1E.dtype == torch.float32
    assert cos_T1E.is_contiguous() and sin_T1E.is_contiguous()
    if positions_T is None:
        assert cos_T1E.shape[0] == num_rows
        return cos_T1E.data_ptr(), sin_T1E.data_ptr(), 0
    assert positions_T.shape == (num_rows,) and positions_T.dtype == torch.int64
    assert positions_T.is_contiguous()
    assert cos_T1E.shape[0] >= max(plan.attn.context_lens, default=0), "a table holds every position"
    return cos_T1E.data_ptr(), sin_T1E.data_ptr(), positions_T.data_ptr()


def _attend_by_reference(attn: AttnInput, rotation: Rotation, options: AttnOptions, q_TD: Tensor,
                         k_TC: Tensor, v_TC: Tensor, sinks_H: Tensor | None = None) -> Tensor:
    options = dataclasses.replace(options, sinks_H=sinks_H)
    plan = reference.plan_attention(attn, dtype=q_TD.dtype, device=q_TD.device)
    return reference.attend_turned(plan, 0, q_TD, k_TC, v_TC, rotation, options)


def _is_inside(indices: Tensor, end: int) -> bool:
    return indices.numel() == 0 or (int(indices.min()) >= 0 and int(indices.max()) < end)
