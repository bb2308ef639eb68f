"""The tuning gap: grids by hand, and the committed study that showed why it is needed."""

import math
from pathlib import Path

import pytest

from smolctl.analysis.learning_rates import best_rate
from smolctl.analysis.tuning_gap import open_edges, tuning_gap
from smolctl.analysis.verdicts import ArmResult, Design, Missing, judge
from smollm2.runs.manifest import Role
from smollm2.runs.run import list_runs

RESULTS = Path(__file__).parents[2] / "results"
NOISE = {0: 0.003, 1: -0.001, 2: -0.002}
VALLEY = {1e-3: 3.2, 2e-3: 3.05, 4e-3: 3.0, 8e-3: 3.05, 16e-3: 3.2}


def grid(valley=VALLEY, noise=NOISE):
    """Losses with noise of seeds and of cells, by rate and seed."""
    return {
        rate: {seed: loss + 10 * e + e * (-1) ** (i + seed) for seed, e in noise.items()}
        for i, (rate, loss) in enumerate(valley.items())
    }


def test_the_best_rate_of_a_clear_valley_has_a_small_gap():
    found = tuning_gap(grid())
    assert best_rate(grid()) == 4e-3
    assert 0 < found < 0.02
    assert found == tuning_gap(grid())  # a pure function of the losses


def test_another_rate_of_the_final_runs_has_a_gap_of_at_least_the_difference():
    found = tuning_gap(grid(), 8e-3)
    assert 0.05 < found < 0.07
    assert tuning_gap(grid(), 8e-3 * (1 + 1e-9)) == found


def test_the_level_of_a_seed_changes_nothing():
    moved = {rate: {s: loss + s for s, loss in one.items()} for rate, one in grid().items()}
    assert tuning_gap(moved) == pytest.approx(tuning_gap(grid()))


def test_a_minimum_between_two_rates_counts():
    """A parabola whose vertex is half-way: 0.05 below its neighbours."""
    rates = [2.0**k for k in range(6)]
    valley = {rate: 3 + 0.2 * (math.log2(rate) - 2.5) ** 2 for rate in rates}
    quiet = {0: 1e-6, 1: -1e-6}
    assert tuning_gap(grid(valley, quiet)) == pytest.approx(0.05, abs=0.001)


def test_more_seeds_make_the_bound_smaller():
    many = {4 * k + seed: e for k in range(4) for seed, e in NOISE.items()}
    assert tuning_gap(grid(noise=many)) < tuning_gap(grid())


@pytest.mark.parametrize(
    ("losses", "rate"),
    [
        ({}, None),
        (grid({1e-3: 3.2, 2e-3: 3.1}), None),  # two rates
        (grid({1e-3: 3.2, 2e-3: 3.1, 4e-3: 3.0}), None),  # the best at an edge
        (grid({1e-3: 3.0, 2e-3: 3.1, 4e-3: 3.2}), None),
        (grid(noise={0: 0.003}), None),  # one seed
        (grid(), 3e-3),  # no rate of the grid
        ({rate: {i: 3.0, i + 1: 3.1} for i, rate in enumerate(VALLEY)}, None),  # no common seeds
        ({rate: dict.fromkeys(NOISE, math.nan) for rate in VALLEY}, None),  # all failed
    ],
)
def test_what_a_grid_does_not_show_is_infinite(losses, rate):
    assert tuning_gap(losses, rate) == math.inf


@pytest.mark.parametrize("failed", [math.inf, math.nan])
def test_a_rate_with_a_failed_run_is_unusable(failed):
    """Beside it the loss could fall on, as the line shows, as far as that rate."""
    losses = grid({1e-3: 3.2, 2e-3: 3.1, 4e-3: 3.06, 8e-3: 3.05})
    losses[8e-3][1] = failed
    assert best_rate(losses) == 4e-3
    assert 0.04 < tuning_gap(losses) < 0.06
    assert tuning_gap(losses, 8e-3) == math.inf


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ({}, (True, False)),
        (grid(), (False, False)),
        (grid({1e-3: 3.2, 2e-3: 3.1, 4e-3: 3.0}), (False, True)),
        (grid({1e-3: 3.0, 2e-3: 3.1, 4e-3: 3.2}), (True, False)),
        # No rate is significantly better than the last, so the best may lie beyond.
        (grid({1e-3: 3.2, 2e-3: 3.0, 4e-3: 3.001}), (False, True)),
        (grid({1e-3: 3.0, 2e-3: 2.999, 4e-3: 3.001}), (True, True)),
        (grid({1e-3: 3.2, 2e-3: 3.0, 4e-3: 3.001, 8e-3: math.inf}), (False, False)),
        (grid({1e-3: math.inf, 2e-3: 3.0, 4e-3: 3.2}), (False, False)),
        (grid({1e-3: 3.2, 2e-3: 3.0, 4e-3: 3.001}, {0: 0.003}), (False, False)),  # unknown spread
        (grid({1e-3: 3.0}), (True, True)),
        (grid(dict.fromkeys(VALLEY, math.inf)), (True, False)),
    ],
)
def test_an_edge_is_open_while_its_rate_may_be_the_best(losses, expected):
    assert open_edges(losses) == expected
    if any(expected):
        assert tuning_gap(losses) == math.inf


def test_the_published_study_is_inconclusive_for_lack_of_tuning():
    """An arm was called better than `orig` at 0.004; an A/A study of `orig` at 0.003 refuted it."""
    grids, finals = {}, {}
    for run in list_runs(RESULTS, "nano-main")[0]:
        seed, rate = run.protocol.seed, run.protocol.recipe.lr
        if run.role is Role.SWEEP:
            by_rate = grids.setdefault(run.arm, {})
            by_rate.setdefault(rate, {})[seed] = float(run.table("val")["loss"].iloc[-1])
        else:
            finals.setdefault((run.arm, rate), {})[seed] = float(run.test_scores()["loss"])
    arms = {
        arm: ArmResult(
            losses=losses,
            model=arm,
            rate=(rate,),
            tuning_gap=tuning_gap(grids[arm], rate),
            documents=5,
            trigram=9.9,
        )
        for (arm, rate), losses in finals.items()
    }
    assert set(arms) == {"orig", "orig-174m", "pow2", "pow2-135m", "moe-160m"}
    for arm, rate in finals:
        assert best_rate(grids[arm]) == rate  # as the study chose it
    found = judge({"orig": arms.pop("orig"), **arms}, Design(blocked=True))
    assert {one.verdict for one in found.values()} == {"inconclusive"}
    assert found["orig-174m"].interval[1] < 0  # it would have been "better"
    assert found["orig-174m"].missing == (Missing.TUNING,)
