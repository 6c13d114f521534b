"""Token masks from grammars: bits of allowed tokens to the bool tensors that a draw reads.

Does not: know a grammar; it is given one (`chat/grammar.py`).
"""

# V vocabulary

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from openhearth.engine.records import TokenMask


class Follower(Protocol):
    """How far one completion has come in its grammar."""

    def allowed(self, token_ids: Sequence[int]) -> bytes | None:
        """Return the tokens that may follow, one bit each, the lowest bit first; None for all."""


def grammar_mask(follow: Callable[[], Follower], vocab_size: int) -> Callable[[], TokenMask]:
    """Return what `Sampling.token_mask` takes. follow: begins a completion.

    vocab_size: V of the model; tokens that the grammar does not know are not allowed.
    """
    def begin() -> TokenMask:
        follower = follow()

        def mask(token_ids: Sequence[int]) -> Tensor | None:
            allowed = follower.allowed(token_ids)
            if allowed is None:
                return None
            bits = np.frombuffer(allowed, dtype=np.uint8)
            return torch.from_numpy(np.unpackbits(bits, count=vocab_size, bitorder="little").view(np.bool_))

        return mask

    return begin
