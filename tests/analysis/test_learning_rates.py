"""One best rate for the study that trains there, the tuning gap, and the reports."""

import math

import pytest
from support.planted import plant_tuning, planted

from smolctl.analysis.learning_rates import best_rate, usable_losses
from smolctl.analysis.rate_transfer import check_rate, range_of_best
from smolctl.analysis.selection import study_comparison
from smolctl.analysis.tuning_gap import tuning_gap
from smolctl.studies.rate_search import chosen_rates
from smollm2.errors import RunError
from smollm2.runs.manifest import Role
from smollm2.runs.run import Run, list_runs

VALLEY = {1e-3: 3.2, 2e-3: 3.0, 4e-3: 3.1, 8e-3: 3.3}


def grid(changes=None, valley=VALLEY):
    """Losses of three seeds; `changes` by rate and seed, None for a run that is absent."""
    found = {rate: {s: loss + 0.5 * s for s in range(3)} for rate, loss in valley.items()}
    for (rate, seed), loss in (changes or {}).items():
        found[rate][seed] = loss
    return {
        rate: {seed: loss for seed, loss in by_seed.items() if loss is not None}
        for rate, by_seed in found.items()
    }


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        (grid(), 2e-3),
        (grid(valley=VALLEY | {4e-3: 3.0}), 2e-3),  # a tie: the smaller rate
        (dict(reversed(grid(valley=VALLEY | {4e-3: 3.0}).items())), 2e-3),
        (grid({(2e-3, 1): math.inf}), 4e-3),  # diverged with one seed
        (grid({(2e-3, 1): math.nan}), 4e-3),
        # The others' seed 0 is their easiest: only seeds 1 and 2 are fair to all.
        (grid({(2e-3, 0): None}), 2e-3),
        (grid({(2e-3, 0): None, (4e-3, 0): -9.0}), 2e-3),
        # A failed run makes a rate unusable with a seed that another rate lacks, too.
        (grid({(2e-3, 1): math.inf, (8e-3, 1): None}), 4e-3),
        (grid({(rate, 2): math.inf for rate in VALLEY}), None),
        (grid({(rate, i): None for i, rate in enumerate(list(VALLEY)[:3])}), None),  # no common
        ({}, None),
    ],
)
def test_one_function_decides_the_best_rate(losses, expected):
    assert best_rate(losses) == expected
    assert check_rate(losses, 3e-3).tuned == expected
    if expected is None:
        assert tuning_gap(losses) == math.inf
        assert range_of_best(losses) == (1, 0)
        if losses:
            with pytest.raises(RunError, match="failed at every"):
                chosen_rates({"a": losses})
    else:
        assert chosen_rates({"a": losses}) == {"a": expected}
        assert tuning_gap(losses) == tuning_gap(losses, expected) < math.inf
        low, high = range_of_best(losses)
        assert low <= expected <= high


def test_equal_losses_in_another_order_tie():
    """Their sums in floating point differ."""
    first, second = (0.1, 0.2, 0.3), (0.3, 0.2, 0.1)
    assert sum(first) != sum(second)
    losses = {rate: dict(enumerate(one)) for rate, one in ((1e-3, first), (2e-3, second))}
    assert best_rate(losses) == 1e-3


def test_usable_losses_are_ascending_and_of_common_seeds():
    losses = {2e-3: {2: 3.2, 1: 3.1}, 1e-3: {1: 2.1, 2: 2.2, 3: 2.3}, 4e-3: {1: math.inf, 2: 9.0}}
    assert list(usable_losses(losses).items()) == [(1e-3, [2.1, 2.2]), (2e-3, [3.1, 3.2])]


@pytest.mark.parametrize("diverged", [True, False])
def test_only_a_tuning_run_that_diverged_makes_its_rate_unusable(workdir, template, diverged):
    for seed in range(2):
        planted(template, "a", seed, 5.0)
    plant_tuning(template, "a")
    Run(workdir / "results/s/a-tuning1-s101").update(state="failed", diverged=diverged)
    runs, _ = list_runs(workdir / "results", "s")
    study = study_comparison("s", [run for run in runs if run.role is Role.FINAL])
    lower, own, _ = sorted(study.grids["a"])
    assert own == study.base.rates[0]
    if diverged:
        assert study.grids["a"][own][101] == math.inf
        assert best_rate(study.grids["a"]) == lower
        assert not study.is_swept
    else:  # as if it had not ended
        assert 101 not in study.grids["a"][own]
        assert best_rate(study.grids["a"]) == own
