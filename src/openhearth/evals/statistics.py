"""What a number of right answers says about a model: intervals, pass@k, and paired comparison.

Does not: correct for several comparisons; each is its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

_Z_95 = 1.959963984540054
"""Quantile of the normal distribution at 0.975."""


def wilson_interval(num_right: float, num_all: int, z: float = _Z_95) -> tuple[float, float]:
    """Return the interval for a share, by default at 95 %. (0, 1) when nothing was counted.

    num_right may be fractional: the sum of shares of right samples over independent problems. Their
    mean varies no more than that of single yes-or-no outcomes, so the interval is wide enough.
    Source: E. B. Wilson, J. Am. Stat. Assoc. 22 (1927), 209-212, without continuity correction.
    """
    if num_all == 0:
        return 0.0, 1.0
    share = num_right / num_all
    middle = (share + z * z / (2 * num_all)) / (1 + z * z / num_all)
    half = (z / (1 + z * z / num_all)) * math.sqrt(
        share * (1 - share) / num_all + z * z / (4 * num_all * num_all))
    return max(0.0, middle - half), min(1.0, middle + half)


def pass_at_k(num_samples: int, num_right: int, k: int) -> float:
    """Return the unbiased estimate of the chance that one of k samples is right.

    num_samples >= k >= 1. Source: arXiv 2107.03374, section 2.1: 1 - C(n - c, k) / C(n, k).
    """
    assert 1 <= k <= num_samples and 0 <= num_right <= num_samples
    return 1.0 - math.comb(num_samples - num_right, k) / math.comb(num_samples, k)


@dataclass(frozen=True)
class Paired:
    """Two models on the same problems.

    num_pairs: problems that both were graded on. only_first, only_second: right by one of them alone.
    p_value: of the exact two-sided McNemar test. Example: ``compare([True, False], [False, False])``.
    """

    num_pairs: int
    only_first: int
    only_second: int
    p_value: float


def compare(first: Sequence[bool], second: Sequence[bool]) -> Paired:
    """Compare outcomes on the same problems, in the same order: exact binomial McNemar test.

    Source: Q. McNemar, Psychometrika 12 (1947), 153-157; exact form: two-sided binomial test of the
    pairs that differ, at 1/2.
    """
    pairs = list(zip(first, second, strict=True))
    only_first = sum(a and not b for a, b in pairs)
    only_second = sum(b and not a for a, b in pairs)
    differing = only_first + only_second
    # Whole numbers until the end: 2.0 ** -differing would underflow above a thousand pairs.
    tail = sum(math.comb(differing, i) for i in range(min(only_first, only_second) + 1))
    p_value = 1.0 if differing == 0 else min(1.0, 2 * tail / 2**differing)
    return Paired(len(pairs), only_first, only_second, p_value)
