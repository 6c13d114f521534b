"""Which tokens a truncated draw could have taken, row by row.

Top-k, top-p and min-p draw from a part of the vocabulary. A log-probability under that draw, or under later
weights with the same choice left (arXiv 2512.02556, section 3.1, "Keep Sampling Mask"), needs the part.
"""

# R rows, V vocabulary, K kept tokens of all rows

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class KeptTokens:
    """The kept tokens of R rows, one row after the other.

    starts: int64 [R + 1]; row r has token_ids_K[starts[r]:starts[r + 1]], ascending, int32.
    Example: ``KeptTokens.from_mask(torch.tensor([[True, False, True]])).token_ids_K`` is [0, 2].
    """

    starts: Tensor
    token_ids_K: Tensor

    @classmethod
    def from_mask(cls, is_kept_RV: Tensor) -> KeptTokens:
        """Return the true places of each row."""
        starts = torch.zeros(len(is_kept_RV) + 1, dtype=torch.int64)
        torch.cumsum(is_kept_RV.sum(dim=1), 0, out=starts[1:])
        return cls(starts, is_kept_RV.nonzero()[:, 1].to(torch.int32))

    @classmethod
    def join(cls, parts: Sequence[KeptTokens]) -> KeptTokens:
        """Return the rows of all parts, in order."""
        counts = torch.cat([part.starts.diff() for part in parts])
        starts = torch.zeros(len(counts) + 1, dtype=torch.int64)
        torch.cumsum(counts, 0, out=starts[1:])
        return cls(starts, torch.cat([part.token_ids_K for part in parts]))

    def rows(self, start: int, end: int) -> KeptTokens:
        """Return some neighbouring rows."""
        first, last = int(self.starts[start]), int(self.starts[end])
        return KeptTokens(self.starts[start:end + 1] - first, self.token_ids_K[first:last])

    def mask_(self, logits_RV: Tensor) -> None:
        """Set the logits of what was left out to -inf, in place."""
        rows_K = torch.repeat_interleave(torch.arange(len(logits_RV)), self.starts.diff())
        ids_K = self.token_ids_K.long()
        kept_K = logits_RV[rows_K, ids_K]
        logits_RV.fill_(-math.inf)
        logits_RV[rows_K, ids_K] = kept_K
