"""The permutation is one, it is as random as it looks, and it costs no memory."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smollm2.data.permutation import ROUNDS, permuted


def keys_of(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**64, ROUNDS, dtype=np.uint64)


def is_plausible(statistic: float, df: int) -> bool:
    """Whether a chi-square statistic is within five standard deviations of its mean."""
    return abs(statistic - df) < 5 * np.sqrt(2 * df)


def test_every_length_up_to_2000_and_a_million_is_permuted():
    for n in [*range(1, 2001), 10**6]:
        found = permuted(np.arange(n), n, keys_of(n))
        assert np.bincount(found, minlength=n).tolist() == [1] * n, n


@given(n=st.integers(1, 2**62), seed=st.integers(0, 99), data=st.data())
def test_each_place_is_computed_on_its_own(n, seed, data):
    places = np.array(data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=9)))
    together = permuted(places, n, keys_of(seed))
    assert together.min() >= 0
    assert together.max() < n
    alone = [int(permuted(places[i : i + 1], n, keys_of(seed))[0]) for i in range(len(places))]
    assert together.tolist() == alone
    assert len(set(together.tolist())) == len(set(places.tolist()))


@pytest.mark.parametrize("n", [2, 3, 10, 100])
def test_each_number_is_as_often_at_each_place(n):
    draws = 2000
    counts = np.zeros((n, n))
    for seed in range(draws):
        counts[np.arange(n), permuted(np.arange(n), n, keys_of(seed))] += 1
    expected = draws / n
    assert is_plausible(((counts - expected) ** 2 / expected).sum(), (n - 1) ** 2)


def test_each_pair_is_as_often_at_the_first_two_places():
    n, draws = 6, 3000
    first = [permuted(np.arange(2), n, keys_of(seed)) for seed in range(draws)]
    _, counts = np.unique(first, axis=0, return_counts=True)
    assert len(counts) == n * (n - 1)
    expected = draws / len(counts)
    assert is_plausible(((counts - expected) ** 2 / expected).sum(), len(counts) - 1)


def test_neighbours_are_not_related():
    n = 10**6
    found = permuted(np.arange(n), n, keys_of(1)).astype(float)
    for lag in (1, 2, 1000):
        assert abs(np.corrcoef(found[:-lag], found[lag:])[0, 1]) < 5 / np.sqrt(n)
    assert abs(np.corrcoef(found, np.arange(n))[0, 1]) < 5 / np.sqrt(n)


def test_memory_does_not_grow_with_the_length():
    def peak(n: int) -> int:
        places = np.arange(64) * (n // 64)
        tracemalloc.start()
        try:
            permuted(places, n, keys_of(0))
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(10**3)  # numpy's own first
    assert peak(10**15) < peak(10**3) + 10_000
