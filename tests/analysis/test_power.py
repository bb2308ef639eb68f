"""The minimum detectable effect and the seeds for it, against closed forms."""

import math

import numpy as np
import pytest
from scipy.stats import norm
from support.simulated import paired_spread

from smolctl.analysis.power import (
    detectable_by_t,
    minimum_detectable_effect,
    noncentrality,
    seeds_for,
)
from smolctl.analysis.stats import Sample

TEXTBOOK = norm.isf(0.025) + norm.isf(0.2)  # with many runs, in standard errors


def effect(runs, level=0.05):
    return minimum_detectable_effect(Sample(runs, 3.0, 1.0), Sample(runs, 3.0, 1.0), level)


def test_with_many_runs_the_minimum_detectable_effect_is_the_textbook_one():
    assert effect(2_000) == pytest.approx(TEXTBOOK * math.sqrt(2 / 2_000), rel=2e-3)
    assert detectable_by_t(0.5, 5_000, 0.05) == pytest.approx(0.5 * TEXTBOOK, rel=1e-3)


def test_more_runs_or_fewer_arms_detect_a_smaller_effect():
    assert effect(2) > effect(3) > effect(5) > effect(10)
    assert effect(3, 0.05 / 4) > effect(3)
    assert detectable_by_t(1, 2, 0.05) > detectable_by_t(1, 4, 0.05)


@pytest.mark.parametrize("blocked", [True, False])
def test_seeds_are_the_inverse_of_the_minimum_detectable_effect(blocked):
    seeds = seeds_for(0.013, 0.01, blocked=blocked, arms=2)

    def found(n):
        return detectable_by_t(1 / math.sqrt(n), n - 1, 0.025) if blocked else effect(n, 0.025)

    assert 0.01 * found(seeds) <= 0.013 < 0.01 * found(seeds - 1)


def test_smaller_differences_more_arms_looks_and_noise_take_more_seeds():
    def seeds(detect=0.01, spread=0.01, **design):
        return seeds_for(detect, spread, blocked=True, **design)

    assert seeds(0.1) == 2 or seeds(0.1) < seeds()
    assert seeds() < seeds(0.005)
    assert seeds() < seeds(arms=4) <= seeds(arms=4, looks=3)
    assert seeds(spread=paired_spread(0.01, 0.8)) < seeds(spread=paired_spread(0.01, 0.2))


@pytest.mark.parametrize(
    ("detect", "spread"), [(0, 1), (-1, 1), (1, 0), (np.inf, 1), (np.nan, 1), (1e-6, 1)]
)
def test_what_cannot_be_planned_is_refused(detect, spread):
    with pytest.raises(ValueError, match=r"needs a positive|takes more than 10,000 seeds"):
        seeds_for(detect, spread, blocked=True)


@pytest.mark.parametrize(("first", "second"), [(2, 21), (2, 69), (4, 60), (21, 2)])
def test_arms_of_very_unequal_runs_have_an_effect_too(first, second):
    """scipy has NaN for the noncentral t far from its effect."""
    effect = noncentrality(first, second, 0.025)
    assert 1 < effect < 100
