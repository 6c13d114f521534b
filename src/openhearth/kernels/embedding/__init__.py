"""Rows of the embedding table; the choice of kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from openhearth.kernels import select
from openhearth.kernels.embedding import native, reference
from openhearth.kernels.linear.packed import PackedWeight
from openhearth.kernels.traced import TracedPack

__all__ = ["embed"]


def embed(token_ids_T: Tensor, table_VD: Tensor | PackedWeight, out_dtype: torch.dtype) -> Tensor:
    """Return the rows [T, D] that token ids name, widened to out_dtype, by the kernels that were chosen.

    A packed table is one that does not learn.
    """
    if isinstance(token_ids_T, TracedPack):
        return token_ids_T.recorder.embed(table_VD, out_dtype)
    if isinstance(table_VD, PackedWeight):
        return table_VD.gather_rows(token_ids_T, out_dtype)
    kernels = native if select.covers(table_VD.dtype, table_VD.device) else reference
    return kernels.embed(token_ids_T, table_VD, out_dtype)
