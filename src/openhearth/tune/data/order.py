"""Which sample comes when: an endless, shuffled, repeatable order with a position.

Every epoch is a permutation drawn from (seed, epoch) alone, so that a position is one number and a resumed
run needs no state of a generator.
"""

from __future__ import annotations

import random


class Order:
    """Positions to sample numbers. Example: ``Order(3, seed=0).take(0, 3)`` holds 0, 1 and 2 once each."""

    def __init__(self, num_samples: int, *, seed: int) -> None:
        self.num_samples, self.seed = num_samples, seed
        self._epoch, self._shuffled = -1, []

    def take(self, position: int, count: int) -> list[int]:
        """Return the numbers of the samples at `count` positions."""
        return [self._at(place) for place in range(position, position + count)]

    def _at(self, place: int) -> int:
        epoch, index = divmod(place, self.num_samples)
        if epoch != self._epoch:
            self._epoch, self._shuffled = epoch, list(range(self.num_samples))
            random.Random(f"{self.seed}/{epoch}").shuffle(self._shuffled)
        return self._shuffled[index]
