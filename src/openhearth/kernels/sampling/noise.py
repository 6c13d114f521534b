"""Random numbers that depend on nothing but their address.

Every draw of every completion has its own block of a counter-based stream, so neither the batch, nor
preemption, nor another request can change what a completion draws. No global state is read or moved.

Does not: offer cryptographic strength.
"""

# R rows, N numbers per row

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
_ROUNDS = 10


def philox4x32(counter: Sequence[np.ndarray], key: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
    """Return the four 32-bit words of Philox4x32-10 for every counter and key.

    counter: four, key: two uint64 arrays that broadcast together, every value below 2**32. Returns
    four uint64 arrays with values below 2**32. Source: Salmon, Moraes, Dror, Shaw, "Parallel random
    numbers: as easy as 1, 2, 3" (SC 2011), section 3.3; constants of Random123 1.14.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for round_index in range(_ROUNDS):
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        bump0, bump1 = (np.uint64(round_index * step & 0xFFFFFFFF) for step in _WEYL)
        c0 = (product1 >> _SHIFT) ^ c1 ^ ((k0 + bump0) & _LOW)
        c1 = product1 & _LOW
        c2 = (product0 >> _SHIFT) ^ c3 ^ ((k1 + bump1) & _LOW)
        c3 = product0 & _LOW
    return c0, c1, c2, c3


def uniforms(seeds: Sequence[int], completions: Sequence[int], draws: Sequence[int],
             count: int) -> np.ndarray:
    """Return float64 [R, count] strictly between 0 and 1, row r addressed by (seed, completion, draw).

    seeds: R ints in [0, 2**64). completions, draws: R ints in [0, 2**32). A row is the same whatever
    the other rows are, and a smaller count gives a prefix of a larger one.
    """
    seeds_R1 = np.array(seeds, dtype=np.uint64)[:, None]
    completions_R1 = np.array(completions, dtype=np.uint64)[:, None]
    draws_R1 = np.array(draws, dtype=np.uint64)[:, None]
    blocks_1C = np.arange((count + 3) // 4, dtype=np.uint64)[None, :]
    words = philox4x32((blocks_1C, draws_R1, completions_R1, np.uint64(0)),
                       (seeds_R1 & _LOW, seeds_R1 >> _SHIFT))
    bits_RN = np.stack(words, axis=-1).reshape(len(seeds), -1)[:, :count]
    return (bits_RN + 0.5) * 2.0**-32
