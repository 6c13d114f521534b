"""From logits to tokens and their log-probabilities; the choice of its kernels."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from openhearth.kernels import select
from openhearth.kernels.logprob.kept import KeptTokens
from openhearth.kernels.sampling import native, reference
from openhearth.kernels.sampling.inputs import Draw, Row, Settings, TokenCounts, needs_counts

__all__ = ["Draw", "Row", "TokenCounts", "draw", "kept_tokens", "needs_counts"]


def draw(logits_RV: Tensor, rows: Sequence[Row]) -> list[Draw]:
    """Draw one token per row, by the kernels that were chosen. logits_RV: float32, overwritten.

    Greedy rows take the most likely token, the lowest id among equals.
    """
    kernels = native if select.covers(logits_RV.dtype, logits_RV.device) else reference
    return kernels.draw(logits_RV, rows)


def kept_tokens(logits_RV: Tensor, sampling: Settings) -> KeptTokens:
    """Return the tokens that a draw from each row could take, by the kernels that draw.

    logits_RV: float32, before temperature. Penalties, biases and masks are not applied.
    """
    if select.covers(logits_RV.dtype, logits_RV.device):
        return KeptTokens.from_mask(logits_RV >= native.least_kept(logits_RV, sampling)[:, None])
    scaled_RV = logits_RV / sampling.temperature
    for scaled_V in scaled_RV:
        reference.truncate_(scaled_V, sampling)
    return KeptTokens.from_mask(scaled_RV > -math.inf)
