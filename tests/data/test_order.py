"""Each epoch is a permutation, known for one place at a time."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid.data.order import row_at


@settings(derandomize=True, deadline=None, max_examples=60)
@given(num_rows=st.integers(1, 200), seed=st.integers(0, 2**63), epoch=st.integers(0, 10**9))
def test_an_epoch_holds_every_row_once(num_rows, seed, epoch):
    first = epoch * num_rows
    rows = [row_at(place, num_rows, seed) for place in range(first, first + num_rows)]
    assert sorted(rows) == list(range(num_rows))


def test_epochs_and_seeds_differ():
    def epoch(number, seed):
        return [row_at(place, 50, seed) for place in range(50 * number, 50 * number + 50)]

    orders = [epoch(0, 0), epoch(1, 0), epoch(0, 1), list(range(50))]
    assert len({tuple(order) for order in orders}) == 4


def test_the_order_never_changes_between_versions():
    assert [row_at(place, 10, 7) for place in range(12)] == [2, 9, 7, 1, 6, 8, 5, 0, 4, 3, 2, 8]


def test_places_and_neighbours_are_mixed():
    """Mean row of each tenth, and how often a row follows its neighbour, as by chance."""
    rows = np.array([row_at(place, 10_000, 3) for place in range(10_000)])
    means = rows.reshape(10, 1000).mean(1)
    assert np.abs(means - 5000).max() < 5 * 10_000 / 12**0.5 / 1000**0.5
    assert np.count_nonzero(np.abs(np.diff(rows)) == 1) < 12
    assert abs(np.corrcoef(rows[:-1], rows[1:])[0, 1]) < 0.05
