"""Rows of the embedding table on the CPU: native/rows.h, callable under autograd. Exact."""

# T tokens, V vocabulary, D numbers of a row

from __future__ import annotations

import functools

import torch
from torch import Tensor

from openhearth.errors import UsageError
from openhearth.kernels import recompute, select
from openhearth.kernels.embedding import reference


def embed(token_ids_T: Tensor, table_VD: Tensor, out_dtype: torch.dtype, *, isa: str | None = None) -> Tensor:
    """As the reference; out_dtype is that of the table, or float32. Raises: UsageError for types and ids."""
    return recompute.call(functools.partial(_embed, token_ids_T, out_dtype, isa),
                          lambda table_VD: reference.embed(token_ids_T, table_VD, out_dtype), table_VD)


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
