"""The claims of docs/statistics.md about error rates, simulated."""

from pathlib import Path

import numpy as np
import pytest
from support.simulated import diverging_arms, false_equivalence, found_share, paired_spread
from support.simulated_cases import GROUPS, Rates, rates_of
from support.simulated_tuning import tuned

from smolctl.analysis.power import detectable_by_t, seeds_for
from smolctl.analysis.stats import sample, welch

ROOT = Path(__file__).parents[2]
STUDIES = 10_000
# Of the groups that take longer, every so many simulations; all of them in the slow tests. A number
# that shares no factor with the designs' meets every value of each of them.
EVERY = {
    "incomplete": 5,
    "equivalence": 11,
    "divergence": 23,
    "tuning": 53,
    "noisy_tuning": 23,
    "growing": 32,
    "ladders": 37,
    "tuned_ladders": 11,
    "these_documents": 11,
    "like_documents": 11,
}


def assert_rates(group, every):
    found = rates_of(group, STUDIES, every)
    assert found.tolerance < 0.009
    confidence = 0.975 if "ladders" in GROUPS[group].__name__ else 0.95
    assert found.covered >= confidence - found.tolerance
    if found.false is not None:
        assert found.false <= 0.05 + found.tolerance


def table():
    """The table of docs/statistics.md: its cells by group."""
    text = (ROOT / "docs/statistics.md").read_text(encoding="utf-8")
    _, text = text.split("<!-- simulations: begin -->")
    lines = text.split("<!-- simulations: end -->")[0].strip().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    return {group: cells for group, *cells in rows}


def test_the_documents_say_what_is_simulated():
    found = table()
    assert list(found) == list(GROUPS)
    false = [float(cells[2].split()[0]) for cells in found.values() if cells[2] != "–"]
    covered = [float(cells[3].split()[0]) for cells in found.values()]
    points = 100 * Rates(1, STUDIES, None, 1.0).tolerance
    readme, page = (
        " ".join((ROOT / name).read_text(encoding="utf-8").split())
        for name in ("README.md", "docs/statistics.md")
    )
    assert (
        f"the tests simulate {STUDIES:,} studies of each design and fail above {5 + points:.1f} %, "
        "and the worst in the [table](docs/statistics.md#measured-error-rates) is "
        f"{max(false):.1f} %; of intervals, at least {min(covered):.1f} % cover"
    ) in readme
    assert f"simulate {STUDIES:,} studies of each design" in page
    assert f"by more than four standard errors: {points:.1f} points" in page


@pytest.mark.parametrize("group", GROUPS)
def test_false_verdicts_and_coverage(group):
    """In no design does the share of studies with a false verdict exceed 5 %, or that of intervals
    that cover fall below 95 %, by more than four standard errors of 10,000 studies: 0.9 points."""
    assert_rates(group, EVERY.get(GROUPS[group].__name__, 1))


@pytest.mark.parametrize("group", [g for g in GROUPS if GROUPS[g].__name__ in EVERY])
@pytest.mark.slow
def test_false_verdicts_and_coverage_in_every_design(group):
    assert_rates(group, 1)


def test_a_verdict_that_ignores_tuning_is_often_false():
    """Why tuning is a part of the estimate: equal arms, each at the rate that its grid chose."""
    grid = {"factor": 2, "rise": 0.08, "rates": 5, "seeds": 2}
    ours, naive = tuned(1_000, "parabola", families=(1,), final_seeds=10, **grid)
    assert ours[0][0] < 0.02
    assert naive[0][0] > 0.3


def test_arms_whose_seeds_diverge_would_often_be_falsely_better():
    """Why an arm with a diverged seed is at most worse: its losses are those that did not."""
    design = {"seeds": 10, "rate": 0.3, "steepness": 5, "correlation": 0.0, "both": False}
    _, _, found, is_allowed = diverging_arms(STUDIES, arms=1, blocked=False, **design)
    decided = found.p < 0.05
    assert decided.mean() > 0.1
    assert (decided & is_allowed).mean() < 0.02


def test_equivalence_at_the_margin_is_false_in_half_of_the_allowed_cases():
    """It takes an interval within the margin on both sides, and one is enough to miss."""
    design = {"seeds": 5, "margin": 1.0, "correlation": 0.5, "blocked": True}
    for false, _ in false_equivalence(STUDIES, **design):
        assert false <= 0.025 + 0.0063  # four standard errors


@pytest.mark.parametrize(("ratio", "runs", "said"), [(1, 5, 3.8), (5, 5, 10.5), (5, 20, 7.7)])
def test_the_page_says_what_skewed_noise_does(ratio, runs, said):
    """An exponential arm beside a Gaussian base: more than 5 % where its spread is larger."""
    assert f"{said} %" in (ROOT / "docs/statistics.md").read_text(encoding="utf-8")
    random = np.random.default_rng(runs)
    base = random.normal(size=(40_000, runs))
    arm = ratio * (random.exponential(size=(40_000, runs)) - 1)
    false = (welch(sample(base), sample(arm)).p < 0.05).mean()
    assert 100 * false == pytest.approx(said, abs=0.7)  # four standard errors


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
