"""Learning rates of one size from those of another."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smolctl.analysis.rate_transfer import (
    between,
    check_rate,
    range_of_best,
    rates_around,
    transferred,
    transferred_gap,
)

RATES = (0.001, 0.001414, 0.002, 0.002828, 0.004)


def valley(best: float, noise: float = 0.0, seeds: int = 3) -> dict[float, dict[int, float]]:
    """Losses over `RATES`: a parabola in the logarithm of the rate."""
    rng = np.random.default_rng(1)
    return {
        rate: {
            seed: 5 + 0.1 * seed + 0.2 * math.log(rate / best) ** 2 + noise * rng.normal()
            for seed in range(seeds)
        }
        for rate in RATES
    }


@pytest.mark.parametrize(
    ("rate", "width", "target", "expected"),
    [
        (0.004, 64, 64, 0.004),
        (0.004, 64, 128, 0.002),
        (0.004, 72, 96, 0.002828),
        (0.004, 96, 72, 0.005657),
        (0.003, 100, 101, 0.002828),  # to the grid, at most the fourth root of 2 away
    ],
)
def test_the_rate_falls_as_the_width_grows(rate, width, target, expected):
    found = transferred(rate, width, target)
    assert found == expected
    assert abs(math.log(found * target / (rate * width), 2)) <= 0.25 + 1e-3


@given(
    start=st.floats(-2, 2),
    drift=st.floats(-2, 2),
    curvature=st.floats(0, 1),
    reach=st.floats(0, 10),
)
def test_the_gap_of_a_transferred_rate_is_bounded(start, drift, curvature, reach):
    """Of a rate whose distance from the best one is a line in log size, in parabolas."""
    first, check, here = (curvature * (start + drift * at) ** 2 for at in (0, 1, reach))
    assert here <= transferred_gap(first, check, reach) + 1e-9


@given(start=st.floats(-2, 2), drift=st.floats(-2, 2), reach=st.floats(0, 1))
def test_between_the_tuned_sizes_any_convex_valley_will_do(start, drift, reach):
    first, check, here = (
        math.exp(start + drift * at) - 1 - (start + drift * at) for at in (0, 1, reach)
    )
    assert here <= transferred_gap(first, check, reach) + 1e-9


def test_the_gap_of_a_transferred_rate_is_the_larger_one_and_grows_beyond_the_check():
    assert transferred_gap(0.01, 0.04, 0.5) == transferred_gap(0.04, 0.01, 0.5) == 0.04
    assert transferred_gap(0.01, 0.04, 1) == pytest.approx(0.04)
    assert transferred_gap(0.01, 0.04, 2) == pytest.approx(0.25)  # twice 0.2, and 0.1


def test_other_sizes_have_a_power_of_the_size_through_both_rates():
    assert [between(0.004, 0.002, reach) for reach in (0, 0.5, 1, 2)] == [
        *(0.004, 0.002828, 0.002, 0.001)
    ]


def test_the_grid_holds_every_rate_that_it_checks():
    rates = [transferred(rate, 64, 128) for rate in (0.003, 0.006, 0.011)]
    grid = rates_around(rates, 2)
    assert set(rates) <= set(grid)
    assert grid[2] == min(rates)
    assert grid[-3] == max(rates)
    assert all(high / low < 1.5 for low, high in pairwise(grid))


def test_a_rate_at_the_best_one_is_among_the_best_and_its_gap_is_small():
    found = check_rate(valley(0.002, 0.001), 0.002)
    assert found.holds
    assert found.tuned == 0.002
    assert found.gap < 0.01
    low, high = found.best
    assert 0.001414 < low < 0.002 < high < 0.002828


def test_a_rate_far_from_the_best_one_is_not_and_its_gap_says_by_how_much():
    found = check_rate(valley(0.002, 0.001), 0.004)
    assert not found.holds
    assert found.gap == pytest.approx(0.2 * math.log(2) ** 2, rel=0.1)


def test_with_noise_no_rate_is_worse_than_the_best():
    noise = (0.3, -0.2, 0.1, -0.3, 0.2)
    grid = {
        rate: {0: 5.0 + extra, 1: 5.0 - extra, 2: 5.0}
        for rate, extra in zip(RATES, noise, strict=True)
    }
    assert range_of_best(grid) == (0.001, 0.004)


def test_a_rate_that_failed_is_not_among_the_best():
    grid = valley(0.004)
    grid[0.004] = dict.fromkeys(grid[0.004], math.inf)
    assert range_of_best(grid) == pytest.approx((0.002378, 0.003363), rel=1e-3)
    every = {rate: {0: math.inf, 1: math.inf} for rate in RATES}
    found = check_rate(every, 0.002)
    assert (found.holds, found.tuned, found.gap) == (False, None, math.inf)


def test_a_rate_that_was_not_tried_has_no_bound():
    assert check_rate(valley(0.002), 0.0021).gap == math.inf
    assert not check_rate({}, 0.002).holds
