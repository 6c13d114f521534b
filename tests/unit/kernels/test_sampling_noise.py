"""Counter-based random numbers."""

import numpy as np
import pytest

from openhearth.kernels.sampling.noise import philox4x32, uniforms

# Known answers of Random123 (kat_vectors, philox4x32 10).
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0),
     (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
]


@pytest.mark.parametrize("counter,key,words", KNOWN)
def test_philox_gives_the_published_words(counter, key, words):
    arrays = [np.array([value], dtype=np.uint64) for value in (*counter, *key)]
    assert tuple(int(word[0]) for word in philox4x32(arrays[:4], arrays[4:])) == words


def test_philox_of_many_counters_is_that_of_each():
    counters = np.array([known[0] for known in KNOWN], dtype=np.uint64).T
    keys = np.array([known[1] for known in KNOWN], dtype=np.uint64).T
    words = np.stack(philox4x32(counters, keys)).T
    assert [tuple(row) for row in words.tolist()] == [known[2] for known in KNOWN]


def test_a_row_is_the_same_alone_and_among_others():
    seeds, completions, draws = [0, 7, 2**64 - 1, 7], [0, 1, 2**32 - 1, 0], [0, 5, 2**32 - 1, 5]
    together = uniforms(seeds, completions, draws, 37)
    for row in range(4):
        alone = uniforms(seeds[row:row + 1], completions[row:row + 1], draws[row:row + 1], 37)
        assert (together[row] == alone[0]).all()


def test_fewer_numbers_are_a_prefix_of_more():
    assert (uniforms([3], [1], [2], 5) == uniforms([3], [1], [2], 64)[:, :5]).all()


def test_seed_completion_and_draw_each_change_every_number():
    base = uniforms([1], [2], [3], 64)
    for address in (([2], [2], [3]), ([1 + 2**32], [2], [3]), ([1], [3], [3]), ([1], [2], [4])):
        assert (uniforms(*address, 64) != base).all()


def test_numbers_lie_strictly_between_0_and_1_and_are_uniform():
    numbers = uniforms(range(1000), [0] * 1000, [0] * 1000, 100).ravel()
    assert numbers.min() > 0
    assert numbers.max() < 1
    counts = np.bincount((numbers * 50).astype(int), minlength=50)
    chi_square = ((counts - 2000) ** 2 / 2000).sum()
    # Quantiles 0.001 and 0.999 at 49 degrees of freedom.
    assert 24.0 < chi_square < 85.4


def test_consecutive_draws_are_not_correlated():
    numbers = uniforms([5] * 5000, [0] * 5000, range(5000), 2)
    assert abs(np.corrcoef(numbers[:-1, 0], numbers[1:, 0])[0, 1]) < 0.05
    assert abs(np.corrcoef(numbers[:, 0], numbers[:, 1])[0, 1]) < 0.05
