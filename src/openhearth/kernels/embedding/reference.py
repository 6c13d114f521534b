"""Rows of the embedding table in plain torch."""

# T tokens, V vocabulary, D numbers of a row

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def embed(token_ids_T: Tensor, table_VD: Tensor, out_dtype: torch.dtype) -> Tensor:
    """Return table[token_ids] [T, D] in out_dtype."""
    return functional.embedding(token_ids_T, table_VD).to(out_dtype)
