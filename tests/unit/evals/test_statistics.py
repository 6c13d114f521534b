"""Intervals, pass@k and paired tests against published implementations."""

import itertools

import pytest

from openhearth.evals import compare, pass_at_k, wilson_interval


@pytest.mark.parametrize("num_right,num_all,low,high", [
    # statsmodels 0.15.0, stats.proportion.proportion_confint(k, n, method="wilson")
    (0, 50, 0.0, 0.07134759913335874),
    (1, 10, 0.017876213095072924, 0.40415002679523854),
    (37, 200, 0.13730192800616045, 0.24457062761151752),
    (199, 200, 0.9722262956021069, 0.9991168312843989),
    (200, 200, 0.9811546736227335, 1.0),
    (5000, 10000, 0.49020206181540477, 0.5097979381845952),
])
def test_wilson_interval_equals_statsmodels(num_right, num_all, low, high):
    assert wilson_interval(num_right, num_all) == pytest.approx((low, high), abs=1e-12)


def test_nothing_counted_says_nothing():
    assert wilson_interval(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize("only_first,only_second,p_value", [
    # statsmodels 0.15.0, stats.contingency_tables.mcnemar(..., exact=True); scipy 1.17.1 binomtest agrees
    (0, 0, 1.0), (5, 1, 0.21875), (12, 3, 0.03515625), (30, 30, 1.0), (1, 0, 1.0),
    (700, 500, 8.535366081034316e-09),
])
def test_mcnemar_equals_statsmodels(only_first, only_second, p_value):
    first = [True] * only_first + [False] * only_second + [True] * 7 + [False] * 9
    second = [False] * only_first + [True] * only_second + [True] * 7 + [False] * 9
    found = compare(first, second)
    assert (found.num_pairs, found.only_first, found.only_second) == (len(first), only_first, only_second)
    assert found.p_value == pytest.approx(p_value, rel=1e-9)
    assert compare(second, first).p_value == found.p_value


@pytest.mark.parametrize("num_samples,num_right,k", [(5, 0, 1), (5, 2, 1), (6, 2, 3), (8, 7, 4), (4, 4, 4)])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample(num_samples, num_right, k):
    outcomes = [i < num_right for i in range(num_samples)]
    subsets = list(itertools.combinations(outcomes, k))
    expected = sum(any(subset) for subset in subsets) / len(subsets)
    assert pass_at_k(num_samples, num_right, k) == pytest.approx(expected, abs=1e-12)
