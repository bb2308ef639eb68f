"""The claims of docs/statistics.md about error rates, simulated."""

import numpy as np
import pytest
from support.simulated import diverged, found_share, tuned_false_verdicts
from support.simulated_cases import GROUPS, rates_of

from smolctl.analysis.power import detectable_by_t, paired_spread, seeds_for

STUDIES = 10_000


@pytest.mark.parametrize("group", GROUPS)
def test_false_verdicts_and_coverage(group):
    """In no design does the share of studies with a false verdict exceed 5 %, or that of intervals
    that cover fall below 95 %, by more than four standard errors of the simulation. A design has
    10,000 studies (0.9 points); 1,000 with documents (2.8), 200 with tuning (6.2)."""
    found = rates_of(group, STUDIES)
    assert found.designs >= 4
    assert found.covered >= 0.95 - found.tolerance
    if found.false is not None:
        assert found.false <= 0.05 + found.tolerance


def test_a_verdict_that_ignores_tuning_is_often_false():
    """Why tuning is a part of the estimate: equal arms, each at the rate that its grid chose."""
    grid = {"factor": 2, "rise": 0.08, "rates": 5, "seeds": 2}
    wrong, naive = tuned_false_verdicts(1_000, "parabola", arms=1, final_seeds=10, **grid)
    assert wrong < 0.02
    assert naive > 0.3


def test_an_arm_with_a_diverged_seed_is_falsely_worse_in_half_of_the_allowed_cases():
    """It cannot be better, so one side of the test is left."""
    better, worse = diverged(STUDIES, seeds=5)
    assert better + worse < 0.055
    assert worse < 0.03


@pytest.mark.parametrize(("blocked", "correlation"), [(True, 0.0), (True, 0.8), (False, 0.0)])
@pytest.mark.parametrize("arms", [1, 4])
@pytest.mark.parametrize("detect", [0.03, 0.01])
def test_the_planned_seeds_find_the_difference_in_80_percent(detect, arms, blocked, correlation):
    spread = paired_spread(0.01, correlation) if blocked else 0.01
    seeds = seeds_for(detect, spread, blocked=blocked, arms=arms)
    share = found_share(
        STUDIES, seeds=seeds, effect=detect, blocked=blocked, arms=arms, correlation=correlation
    )
    assert share >= 0.8 - 0.016  # four standard errors
    if seeds > 2:
        fewer = found_share(
            STUDIES,
            seeds=seeds - 1,
            effect=detect,
            blocked=blocked,
            arms=arms,
            correlation=correlation,
        )
        assert fewer < 0.8 + 0.016


@pytest.mark.parametrize("seeds", [2, 3, 6])
def test_the_minimum_detectable_effect_within_blocks_is_found_in_80_percent(seeds):
    spread = paired_spread(0.01, 0.5)
    effect = detectable_by_t(spread / np.sqrt(seeds), seeds - 1, 0.05)
    share = found_share(STUDIES, seeds=seeds, effect=effect, blocked=True)
    assert share == pytest.approx(0.8, abs=0.016)
