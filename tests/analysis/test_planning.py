"""How many seeds a difference takes: against simulation, and against numbers computed elsewhere."""

import math

import numpy as np
import pytest

from smolctl.analysis.planning import (
    Family,
    detectable_with,
    pooled,
    require_difference,
    seeds_needed,
    spread_of_differences,
)
from smolctl.analysis.stats import SMALLEST_SPREAD
from smollm2.errors import UserError

BLOCKED, APART = Family(True, 1), Family(False, 1)


@pytest.mark.parametrize(
    ("difference", "deviation", "design", "seeds"),
    [  # The textbook's for 2 (n - 1) degrees of freedom are 26, 37, 8 and 11 for arms apart:
        # `welch` has fewer. Within seeds they are the textbook's.
        (0.01, 0.0126, APART, 27),
        (0.01, 0.0126, Family(False, 4), 38),
        (0.02, 0.0126, APART, 8),
        (0.02, 0.0126, Family(False, 4), 12),
        (0.01, 0.0095 * math.sqrt(2), BLOCKED, 17),
        (0.01, 0.0095 * math.sqrt(2), Family(True, 4), 24),
    ],
)
def test_the_number_of_seeds_is_that_of_the_test(difference, deviation, design, seeds):
    assert seeds_needed(difference, deviation, design) == seeds


def test_seeds_and_detectable_difference_are_inverse():
    for design in (BLOCKED, APART, Family(True, 4, 3)):
        for difference in (0.005, 0.02, 0.1):
            seeds = seeds_needed(difference, 0.01, design)
            assert detectable_with(seeds, 0.01, design) <= difference
            assert seeds == 2 or detectable_with(seeds - 1, 0.01, design) > difference


def test_more_arms_and_more_looks_take_more_seeds():
    counts = [seeds_needed(0.01, 0.01, Family(True, *n)) for n in ((1, 1), (4, 1), (4, 3))]
    assert counts == sorted(set(counts))


def test_one_seed_finds_nothing():
    assert detectable_with(1, 0.01, BLOCKED) is None


def test_a_difference_out_of_reach_is_refused():
    with pytest.raises(UserError, match="takes more than 10,000 seeds an arm"):
        seeds_needed(1e-6, 0.01, BLOCKED)


@pytest.mark.parametrize("difference", [0.0, -0.01, math.inf, math.nan])
def test_a_difference_that_is_none_is_refused(difference):
    with pytest.raises(UserError, match="a positive number of nats/token"):
        require_difference(difference)


def test_spreads_are_pooled_over_arms():
    found = spread_of_differences(
        {"a": {0: 1.0, 1: 2.0, 2: 3.0}, "b": {0: 1.1, 1: 2.3, 9: 7.0}, "c": {1: 2.0, 2: 3.2}}
    )
    assert found.df == 2
    assert found.deviation == pytest.approx(math.sqrt((0.2**2 / 2 + 0.2**2 / 2) / 2))
    assert pooled([[1.0], [2.0]]) is None
    assert pooled([[1.0, 1.0]]).deviation == SMALLEST_SPREAD
    assert spread_of_differences({"a": {0: 1.0}, "b": {1: 2.0}}) is None


def test_the_upper_end_of_a_spread_covers_nine_of_ten():
    rng = np.random.default_rng(1)
    uppers = [pooled(rng.normal(0, 1, (2, 3)).tolist()).upper for _ in range(2000)]
    assert np.mean(np.array(uppers) >= 1) == pytest.approx(0.9, abs=0.03)
