"""Learning rate over the steps of a run."""

from __future__ import annotations

import math
from dataclasses import dataclass

KINDS = ("cosine", "linear", "wsd", "constant")


@dataclass(frozen=True)
class Schedule:
    """Warm-up, then one of KINDS. Example: ``Schedule("cosine", 1e-4, 100, 3).rate(2) == 1e-4``.

    cosine and linear fall to final_share of the peak at the last step (cosine: arXiv 1608.03983, section 3,
    without restarts); wsd stays at the peak and falls linearly over the last decay_share of the steps
    (arXiv 2404.06395, section 4).
    """

    kind: str
    peak: float
    num_steps: int
    num_warmup: int
    final_share: float = 0.1
    decay_share: float = 0.2

    def rate(self, step: int) -> float:
        """Return the rate of a step, counted from 0; the first num_warmup rise to the peak."""
        if step < self.num_warmup:
            return self.peak * (step + 1) / self.num_warmup
        if self.kind == "constant":
            return self.peak
        first = self.num_warmup
        if self.kind == "wsd":
            first = max(first, self.num_steps - math.ceil(self.decay_share * self.num_steps))
            if step < first:
                return self.peak
        done = (step - first) / max(1, self.num_steps - 1 - first)
        fallen = (1 - math.cos(math.pi * min(done, 1.0))) / 2 if self.kind == "cosine" else min(done, 1.0)
        return self.peak * (1 - (1 - self.final_share) * fallen)
