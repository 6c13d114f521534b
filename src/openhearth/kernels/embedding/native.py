"""Rows of the embedding table on the CPU: native/rows.h, callable under autograd. Exact.

A table with `grad_total`, float32 [V, D], has its gradient added there, and none in `grad`.
"""

# T tokens, V vocabulary, D numbers of a row

from __future__ import annotations

import torch
from torch import Tensor

from openhearth.errors import UsageError
from openhearth.kernels import select


def embed(token_ids_T: Tensor, table_VD: Tensor, out_dtype: torch.dtype, *, isa: str | None = None) -> Tensor:
    """As the reference; out_dtype is that of the table, or float32. Raises: UsageError for types and ids."""
    if torch.is_grad_enabled() and table_VD.requires_grad:
        return _Embedded.apply(table_VD, token_ids_T, out_dtype, isa)
    return _embed(token_ids_T, out_dtype, isa, table_VD)


class _Embedded(torch.autograd.Function):
    @staticmethod
    def forward(ctx, table_VD, token_ids_T, out_dtype, isa):
        ctx.token_ids_T, ctx.shape, ctx.dtype = token_ids_T, table_VD.shape, table_VD.dtype
        ctx.total_VD = getattr(table_VD, "grad_total", None)
        return _embed(token_ids_T, out_dtype, isa, table_VD.detach())

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_TD):
        total_VD = torch.zeros(ctx.shape) if ctx.total_VD is None else ctx.total_VD
        total_VD.index_add_(0, ctx.token_ids_T.long(), grad_TD.float())
        return total_VD.to(ctx.dtype) if ctx.total_VD is None else None, None, None, None


def _embed(token_ids_T: Tensor, out_dtype: torch.dtype, isa: str | None, table_VD: Tensor) -> Tensor:
    if out_dtype not in (table_VD.dtype, torch.float32) or not table_VD.is_contiguous():
        raise UsageError(f"rows of a {table_VD.dtype} table in {out_dtype}",
                         why="expected a contiguous table and its own type, or float32")
    ids_T = token_ids_T.to("cpu", torch.int64).contiguous()
    if ids_T.numel() and not (int(ids_T.min()) >= 0 and int(ids_T.max()) < table_VD.shape[0]):
        raise UsageError(f"token ids from {int(ids_T.min())} to {int(ids_T.max())}",
                         why=f"the table has {table_VD.shape[0]} rows")
    out_TD = torch.empty(len(ids_T), table_VD.shape[1], dtype=out_dtype)
    select.native().embed(select.isa_number(isa), table_VD.data_ptr(), ids_T.data_ptr(), out_TD.data_ptr(),
                          len(ids_T), table_VD.shape[1], table_VD.dtype == torch.bfloat16,
                          out_dtype == torch.bfloat16)
    return out_TD
