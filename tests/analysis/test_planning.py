"""How many seeds a difference takes: against simulation, and against numbers computed elsewhere."""

import math

import numpy as np
import pytest
from scipy.stats import t

from smolctl.analysis.planning import (
    FAR,
    FLOOR,
    POWER,
    Design,
    detectable_with,
    pooled,
    power_with,
    require_difference,
    seeds_needed,
    spread_of_differences,
)
from smollm2.errors import UserError

BLOCKED, APART = Design(True, 1), Design(False, 1)


@pytest.mark.parametrize(
    ("difference", "deviation", "design", "seeds"),
    [  # of G*Power's kind, from an audit of the published studies
        (0.01, 0.0126, APART, 26),
        (0.01, 0.0126, Design(False, 4), 37),
        (0.02, 0.0126, APART, 8),
        (0.02, 0.0126, Design(False, 4), 11),
        (0.01, 0.0095 * math.sqrt(2), BLOCKED, 17),
        (0.01, 0.0095 * math.sqrt(2), Design(True, 4), 24),
    ],
)
def test_the_number_of_seeds_is_that_of_the_textbook(difference, deviation, design, seeds):
    assert seeds_needed(difference, deviation, design) == seeds


@pytest.mark.parametrize("design", [BLOCKED, APART, Design(True, 4, 2), Design(False, 3)])
@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
def test_power_is_that_of_simulated_studies(design, seeds):
    rng, trials = np.random.default_rng(seeds), 20_000
    difference = detectable_with(seeds, 1.0, design)
    if design.blocked:
        values = rng.normal(difference, 1, (trials, seeds))
        error, df = values.std(axis=1, ddof=1) / math.sqrt(seeds), seeds - 1
        statistic = values.mean(axis=1) / error
    else:
        one = rng.normal(0, 1, (trials, seeds))
        two = rng.normal(difference, 1, (trials, seeds))
        variances = one.var(axis=1, ddof=1) + two.var(axis=1, ddof=1)
        statistic, df = (two - one).mean(axis=1) / np.sqrt(variances / seeds), 2 * (seeds - 1)
    share = (statistic > t.isf(design.level / 2, df)).mean()
    assert share == pytest.approx(POWER, abs=4 * math.sqrt(POWER * (1 - POWER) / trials))


def test_seeds_and_detectable_difference_are_inverse():
    for design in (BLOCKED, APART, Design(True, 4, 3)):
        for difference in (0.005, 0.02, 0.1):
            seeds = seeds_needed(difference, 0.01, design)
            assert detectable_with(seeds, 0.01, design) <= difference
            assert seeds == 2 or detectable_with(seeds - 1, 0.01, design) > difference


def test_more_arms_and_more_looks_take_more_seeds():
    counts = [seeds_needed(0.01, 0.01, Design(True, *n)) for n in ((1, 1), (4, 1), (4, 3))]
    assert counts == sorted(set(counts))


def test_power_is_continuous_where_the_normal_part_is_dropped():
    error = 1 / math.sqrt(3)
    below, above = (power_with(3, error * (FAR + e), 1.0, Design(True, 4)) for e in (-1e-6, 1e-6))
    assert below == pytest.approx(above, abs=1e-4)
    assert seeds_needed(1000.0, FLOOR, BLOCKED) == 2


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
    assert pooled([[1.0, 1.0]]).deviation == FLOOR
    assert spread_of_differences({"a": {0: 1.0}, "b": {1: 2.0}}) is None


def test_the_upper_end_of_a_spread_covers_nine_of_ten():
    rng = np.random.default_rng(1)
    uppers = [pooled(rng.normal(0, 1, (2, 3)).tolist()).upper for _ in range(2000)]
    assert np.mean(np.array(uppers) >= 1) == pytest.approx(0.9, abs=0.03)
