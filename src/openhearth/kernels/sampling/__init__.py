"""From logits to tokens and their log-probabilities; the choice of its kernels."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from openhearth.kernels import select
from openhearth.kernels.sampling import native, reference
from openhearth.kernels.sampling.inputs import Draw, Row, TokenCounts, needs_counts

__all__ = ["Draw", "Row", "TokenCounts", "draw", "needs_counts"]


def draw(logits_RV: Tensor, rows: Sequence[Row]) -> list[Draw]:
    """Draw one token per row, by the kernels that were chosen. logits_RV: float32, overwritten.

    Greedy rows take the most likely token, the lowest id among equals.
    """
    kernels = native if select.covers(logits_RV.dtype, logits_RV.device) else reference
    return kernels.draw(logits_RV, rows)
