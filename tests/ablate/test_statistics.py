"""Intervals: known cases by hand, and coverage where the truth is known."""

import math

import numpy as np
import pytest

from hybrid.evaluation import intervals

# --- Known cases ---------------------------------------------------------------------------------


def test_the_t_interval_over_three_seeds_is_as_by_hand():
    found = intervals.mean_over_seeds([1.0, 2.0, 3.0])
    half = 4.302652729911275 / math.sqrt(3)  # t(0.975, 2) of a printed table; s = 1
    assert (found.mean, found.std) == (2.0, 1.0)
    np.testing.assert_allclose([found.low, found.high], [2 - half, 2 + half], rtol=1e-9)


def test_one_seed_has_a_mean_and_no_interval():
    assert intervals.mean_over_seeds([2.5]) == intervals.SeedMean(2.5, None, None, None)


def test_equal_values_have_an_interval_of_no_width():
    found = intervals.mean_over_seeds([1.5] * 4)
    assert (found.low, found.high, found.std) == (1.5, 1.5, 0.0)


def test_a_mean_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="at least one value"):
        intervals.mean_over_seeds([])
    with pytest.raises(ValueError, match="at least one value"):
        intervals.mean_over_documents(np.zeros(0), np.zeros(0, int))
    with pytest.raises(ValueError, match="at least one answer"):
        intervals.wilson(0, 0)


def test_pairing_takes_out_what_a_seed_does_to_both():
    baseline = [1.0, 5.0, 9.0]
    found = intervals.paired_over_seeds([1.1, 5.1, 9.1], baseline)
    np.testing.assert_allclose([found.mean, found.low, found.high], 0.1, atol=1e-12)
    with pytest.raises(ValueError, match="zip"):
        intervals.paired_over_seeds([1.0], baseline)


def test_equally_long_documents_give_the_t_interval_over_their_means():
    values = np.random.default_rng(0).normal(size=(7, 5))
    found = intervals.mean_over_documents(values.ravel(), np.repeat(np.arange(7), 5))
    expected = intervals.mean_over_seeds(values.mean(axis=1).tolist())
    np.testing.assert_allclose([found.low, found.high], [expected.low, expected.high], rtol=1e-12)
    assert found.num_documents == 7


def test_the_clustered_interval_of_unequal_documents_is_as_by_hand():
    values, documents = np.array([1, 4, 2, 5, 2, 4.0]), np.array([7, 2, 7, 9, 7, 9])
    # Mean 3; centred sums: document 7 (1 + 2 + 2) - 9 = -4, 2: 4 - 3 = 1, 9: (5 + 4) - 6 = 3.
    half = 4.302652729911275 * math.sqrt(3 / 2 * (16 + 1 + 9) / 36)
    found = intervals.mean_over_documents(values, documents)
    np.testing.assert_allclose([found.mean, found.low, found.high], [3, 3 - half, 3 + half])


def test_the_clustered_interval_does_not_depend_on_the_order_of_tokens():
    rng = np.random.default_rng(1)
    values, documents = rng.normal(size=60), rng.integers(0, 9, 60)
    order = rng.permutation(60)
    found = intervals.mean_over_documents(values, documents)
    again = intervals.mean_over_documents(values[order], documents[order])
    np.testing.assert_allclose([again.low, again.high], [found.low, found.high], rtol=1e-12)


def test_one_document_has_a_mean_and_no_interval():
    found = intervals.mean_over_documents(np.array([1.0, 3.0]), np.array([4, 4]))
    assert found == intervals.DocumentMean(2.0, None, None, 1)


@pytest.mark.parametrize(("right", "num"), [(0, 10), (1, 10), (10, 10), (7, 9), (950, 1000)])
def test_wilson_solves_its_equation(right, num):
    """Its ends are the shares p that lie z standard errors √(p(1−p)/n) from what was counted."""
    found, z = intervals.wilson(right, num), 1.959963984540054
    assert (found.mean, found.num) == (right / num, num)
    assert 0 <= found.low <= found.mean <= found.high <= 1
    for end in (found.low, found.high):
        gap = abs(end - right / num)
        assert gap == pytest.approx(z * math.sqrt(end * (1 - end) / num), abs=1e-9)


def test_the_sign_is_that_of_the_whole_interval():
    ends = [(0.1, 0.3), (-0.3, -0.1), (-0.1, 0.1), (None, None)]
    found = [intervals.Estimate(0.2, low, high).sign for low, high in ends]
    assert found == [1, -1, 0, None]


def test_a_crossing_is_linear_in_log_compute():
    compute, loss = [10.0, 1000.0, 2000.0], [3.0, 1.0, 0.5]
    assert intervals.first_crossing(compute, loss, 2.0) == pytest.approx(100)
    assert intervals.first_crossing(compute, loss, 0.75) == pytest.approx(1000 * math.sqrt(2))


def test_a_crossing_is_the_first_and_meets_points_exactly():
    compute, loss = [1.0, 2.0, 3.0, 7.0], [3.0, 2.0, 2.5, 1.0]
    assert intervals.first_crossing(compute, loss, 2.0) == 2.0
    assert intervals.first_crossing(compute, loss, 3.0) == 1.0
    assert intervals.first_crossing(compute, loss, 1.0) == 7.0


def test_there_is_no_crossing_outside_the_curve():
    assert intervals.first_crossing([1.0, 2.0], [3.0, 2.0], 1.9) is None
    assert intervals.first_crossing([1.0, 2.0], [3.0, 2.0], 3.1) is None
    assert intervals.first_crossing([], [], 3.1) is None


# --- Coverage ------------------------------------------------------------------------------------

DRAWS = 1000


def covered(intervals, truth=0.0) -> float:
    return sum(found.low <= truth <= found.high for found in intervals) / DRAWS


def test_the_t_interval_covers_95_percent_with_three_seeds():
    draws = np.random.default_rng(2).normal(size=(DRAWS, 3))
    assert 0.93 <= covered(intervals.mean_over_seeds(row.tolist()) for row in draws) <= 0.97


def test_the_paired_interval_is_narrow_and_still_covers():
    rng = np.random.default_rng(3)
    seeds = rng.normal(scale=10, size=(DRAWS, 3))  # what a seed does to both
    left, right = ((seeds + rng.normal(size=(DRAWS, 3))).tolist() for _ in range(2))
    found = [intervals.paired_over_seeds(*pair) for pair in zip(left, right, strict=True)]
    assert 0.93 <= covered(found) <= 0.97
    assert np.median([one.high - one.low for one in found]) < 10


def test_the_clustered_interval_covers_where_the_one_over_tokens_does_not():
    rng = np.random.default_rng(4)
    lengths = rng.integers(5, 40, size=30)
    documents = np.repeat(np.arange(30), lengths)
    clustered, naive = [], []
    for _ in range(DRAWS):
        values = rng.normal(size=30)[documents] + rng.normal(size=len(documents))
        clustered.append(intervals.mean_over_documents(values, documents))
        naive.append(intervals.mean_over_documents(values, np.arange(len(values))))
    assert 0.93 <= covered(clustered) <= 0.97
    assert covered(naive) < 0.6


def test_wilson_covers_accuracies_near_one():
    right = np.random.default_rng(5).binomial(200, 0.97, size=DRAWS)
    assert 0.93 <= covered((intervals.wilson(int(k), 200) for k in right), 0.97) <= 0.975
