"""The plan counts with what the tuning leaves open: the whole rule finds what was planned."""

import numpy as np
import pytest
from support.simulated import compare, losses, paired_spread
from support.simulated_growth import searches

from smolctl.analysis.planning import Family, seeds_needed, seeds_with_tuning, tuning_cost

ONE = Family(True, 1)
RISE = 0.03  # nats/token an octave from the best rate
DEVIATION = paired_spread(0.01, 0.5)
STUDIES = 500


def found_share(detect: float, seeds: int, tuning: int) -> float:
    """The share of studies that find an arm better by `detect`, the tuning gaps included."""
    random = np.random.default_rng(0)
    within = DEVIATION / np.sqrt(2)
    grid = {"arms": 1, "rise": RISE, "octaves": 0, "seeds": tuning, "spread": within}
    true, bound = searches(random, STUDIES, draws=200, **grid).gaps()
    base, arm = losses(random, STUDIES, arms=1, seeds=seeds, correlation=0.5)
    estimate = compare(base + true[0][:, None], arm[0] + true[1][:, None] - detect, True)
    _, high = estimate.interval(0.95)
    return float((high + bound[0] < 0).mean())


@pytest.mark.parametrize("detect", [0.03, 0.02, 0.01])
def test_the_planned_seeds_and_tuning_find_the_difference(detect):
    seeds, tuning = seeds_with_tuning(detect, DEVIATION, ONE, 5)
    assert 0.76 < found_share(detect, seeds, tuning) < 0.97


def test_seeds_alone_do_not_find_what_the_tuning_leaves_open():
    assert found_share(0.01, seeds_needed(0.01, DEVIATION, ONE), 3) < 0.2


def test_a_smaller_difference_takes_more_of_both():
    designs = [seeds_with_tuning(one, DEVIATION, ONE, 5) for one in (0.04, 0.02, 0.01, 0.005)]
    assert designs == sorted(designs)
    seeds, tuning = designs[-1]
    assert seeds > seeds_needed(0.005, DEVIATION, ONE)
    assert tuning > 10


def test_more_seeds_of_the_tuning_cost_less_of_the_difference():
    costs = [tuning_cost(seeds, 0.01, ONE) for seeds in (3, 5, 10, 20)]
    assert costs == sorted(costs, reverse=True)
    # A spread of runs is that of differences within seeds over the root of 2.
    assert tuning_cost(3, 0.01, Family(False, 1)) == pytest.approx(2**0.5 * costs[0])
