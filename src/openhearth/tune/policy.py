"""The model as a policy: log-probabilities of completions under the distribution they are drawn from.

The forward, the output layer and the arithmetic of a log-probability are those of the engine, so that with
native kernels a completion has the bits here that it was drawn with (guarantee G3).
"""

# N trained tokens of a pack

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from openhearth.engine import Sampling
from openhearth.kernels.logprob import KeptTokens
from openhearth.kernels.sampling import kept_tokens
from openhearth.tune.groups import Trained
from openhearth.tune.packs import Pack, pack_completions, split_completions, trained_hidden, trained_logprobs

_ROWS_AT_ONCE = 64


@dataclass(frozen=True)
class Policy:
    """A model that completes. slot: of the adapter that learns, None where all weights do.

    reference: a frozen copy of the weights before tuning; None where they are the model with the adapter of
    reference_slot, or with none.
    Example: ``Policy(model, slot, sampling, pack_tokens=1024).logprobs(pack, trained)``.
    """

    model: nn.Module
    slot: int | None
    sampling: Sampling
    pack_tokens: int
    reference: nn.Module | None = None
    reference_slot: int | None = None

    def packs(self, completions: Sequence[Trained]) -> list[tuple[list[Trained], Pack]]:
        """Return the completions packed side by side, each prompt once."""
        return [(part, pack_completions(part)) for part in split_completions(completions, self.pack_tokens)]

    def logprobs(self, part: Sequence[Trained], pack: Pack) -> Tensor:
        """Return the log-probability of every token that was drawn, [N], differentiable."""
        return trained_logprobs(self.model, pack, self.slot, self.sampling.temperature, _kept(part))

    def fill_kept(self, completions: Sequence[Trained]) -> None:
        """Note which tokens each draw could take, under the weights that drew; nothing without truncation."""
        sampling = self.sampling
        if sampling.top_k == 0 and sampling.top_p == 1 and sampling.min_p == 0:
            return
        with torch.no_grad():
            for part, pack in self.packs(completions):
                hidden_ND = trained_hidden(self.model, pack, self.slot)
                kept = KeptTokens.join([kept_tokens(self.model.logits(rows), sampling)
                                        for rows in hidden_ND.split(_ROWS_AT_ONCE)])
                start = 0
                for one in part:
                    one.kept = kept.rows(start, start := start + len(one.sampled))

    def fill_reference(self, completions: Sequence[Trained]) -> None:
        """Note what the model before tuning makes of each token."""
        model = self.model if self.reference is None else self.reference
        with torch.no_grad():
            for part, pack in self.packs(completions):
                logprobs_N = trained_logprobs(model, pack, self.reference_slot, self.sampling.temperature,
                                              _kept(part))
                lengths = [len(one.sampled) for one in part]
                for one, found in zip(part, logprobs_N.split(lengths), strict=True):
                    one.reference = found


def _kept(part: Sequence[Trained]) -> KeptTokens | None:
    return None if part[0].kept is None else KeptTokens.join([one.kept for one in part])
