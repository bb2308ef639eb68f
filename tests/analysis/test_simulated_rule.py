"""What the simulations count is what the tool says: `family_verdicts` judges their studies again,
one by one."""

from types import SimpleNamespace

import numpy as np
import pytest
from support.simulated import (
    SPREAD,
    arms_at_the_margin,
    compare,
    diverging_arms,
    equal_arms,
    losses,
)
from support.simulated_documents import document_scores, half_widths
from support.simulated_growth import searches
from support.simulated_tuning import grids

from smolctl.analysis.arms import Arm
from smolctl.analysis.document_interval import document_intervals
from smolctl.analysis.run_metrics import LOSS
from smolctl.analysis.study_plan import Ledger, StudyPlan
from smolctl.analysis.study_verdicts import family_verdicts
from smolctl.analysis.tuning_gap import tuning_gap
from smolctl.studies.rate_grid import Tuning
from smolctl.studies.rate_search import grown

STUDIES = 50
DECIDED = {"better", "worse"}


def arm(name, values, look, model, rate):
    """The runs of an arm, a seed each; NaN for one that diverged."""
    runs, diverged = [], []
    for seed, value in enumerate(values[:look]):
        if not np.isfinite(value):
            diverged.append(seed)
            continue
        recipe = SimpleNamespace(rates={"lr": rate})
        protocol = SimpleNamespace(seed=seed, data_seed=seed, steps=100, model=model, recipe=recipe)
        manifest = SimpleNamespace(manifest={"finished_at": "then"})
        tested = {"effective_documents": 5, "floors": {"trigram": 100.0}}
        of_loss = {LOSS.name: float(value)}
        runs.append(SimpleNamespace(protocol=protocol, values=of_loss, run=manifest, **tested))
    return Arm(name, tuple(runs), diverged=tuple(diverged))


def verdicts(base, others, *, blocked, looks=(), look=None, margin=None, tuning=None, rates=None):
    """What the tool says of a study whose seeds were all planned: losses (seeds,) of the base and
    (arms, seeds). Without `tuning` the arms are one model at one rate, with no tuning gap."""
    names = [str(number) for number in range(1 + len(others))]
    arms = [
        arm(name, values, look, name if tuning else "same", (rates or {}).get(name, 1.0))
        for name, values in zip(names, (base, *others), strict=True)
    ]
    plan = StudyPlan(
        dict.fromkeys(names, tuple(range(len(base)))), (*looks, len(base)), margin, blocked
    )
    found = family_verdicts(arms, tuning or {}, Ledger("before", None, plan, {}, ()))
    assert not any(one.exploratory for one in found.values())
    return [str(one.verdict) for one in found.values()]


@pytest.mark.parametrize("looks", [(), (3, 5, 8)])
@pytest.mark.parametrize("arms", [1, 3])
@pytest.mark.parametrize(("blocked", "correlation"), [(True, 0.5), (False, 0)])
def test_equal_arms(blocked, correlation, arms, looks):
    """Spreads three times apart; looks at the first seeds."""
    noise = {"correlation": correlation, "ratio": 3, "seeds": 8}
    base, others, p = equal_arms(STUDIES, arms=arms, blocked=blocked, looks=looks, **noise)
    counted = p < 0.05 / arms / len(p)
    for number, look in enumerate(looks or (8,)):
        for study in range(STUDIES):
            design = {"blocked": blocked, "looks": looks[:-1], "look": look}
            said = verdicts(base[study], others[:, study], **design)
            assert [one in DECIDED for one in said] == counted[number, :, study].tolist()
    assert counted.any() or arms > 1


@pytest.mark.parametrize("blocked", [True, False])
@pytest.mark.parametrize("both", [True, False])
def test_arms_with_diverged_seeds(both, blocked):
    design = {"arms": 1, "seeds": 6, "rate": 0.2, "steepness": 3, "correlation": 0.5 * blocked}
    base, others, found, is_allowed = diverging_arms(
        4 * STUDIES, blocked=blocked, both=both, **design
    )
    counted = (found.p < 0.05) & is_allowed
    for study in range(4 * STUDIES):
        if np.isfinite(base[study]).any() and np.isfinite(others[:, study]).any(axis=-1).all():
            said = verdicts(base[study], others[:, study], blocked=blocked)
            assert [one in DECIDED for one in said] == counted[:, study].tolist()
    assert counted.any()
    assert (found.p < 0.05)[~is_allowed].any()


@pytest.mark.parametrize("blocked", [True, False])
def test_arms_at_the_margin(blocked):
    noise = {"seeds": 5, "correlation": 0.5 * blocked}
    margin = 4 * SPREAD
    base, others, _ = arms_at_the_margin(2 * STUDIES, arms=2, margin=margin, **noise)
    low, high = compare(base, others, blocked).interval(1 - 0.05 / 2)
    counted = (-margin < low) & (high < margin)
    for study in range(2 * STUDIES):
        said = verdicts(base[study], others[:, study], blocked=blocked, margin=margin)
        assert [one == "equivalent" for one in said] == counted[:, study].tolist()
    assert counted.any()


def test_tuned_arms():
    """Two models, each at the rate its grid chose; with the bounds of 4,000 draws."""
    random = np.random.default_rng(0)
    shape = {"factor": 2, "rise": 0.03, "rates": 4, "seeds": 3, "draws": 4000}
    first, second = (grids(random, STUDIES, "steep", **shape) for _ in range(2))
    base, others = losses(random, STUDIES, arms=1, seeds=10, correlation=0.5)
    base, arm = base + first.gap[:, None], others[0] + second.gap[:, None]
    low, high = compare(base, arm, True).interval(0.95)
    everywhere = np.ones(STUDIES, bool)
    low, high = low - second.bounds(everywhere), high + first.bounds(everywhere)
    for study in range(STUDIES):
        tuning, rates = {}, {}
        for name, one in (("0", first), ("1", second)):
            tried = np.exp(one.x)
            tuning[name] = {
                float(rate): dict(enumerate(map(float, of_rate)))
                for rate, of_rate in zip(tried, one.found[study], strict=True)
            }
            rates[name] = float(tried[one.chosen[study]])
        margin = 2 * SPREAD
        (said,) = verdicts(
            base[study], arm[None, study], blocked=True, margin=margin, tuning=tuning, rates=rates
        )
        is_equivalent = -margin < low[study] and high[study] < margin
        is_decided = low[study] > 0 or high[study] < 0
        expected = {"equivalent"} if is_equivalent else DECIDED if is_decided else {"inconclusive"}
        assert said in expected
    assert np.isfinite(low).any()
    assert not np.isfinite(low).all()


def test_grids_that_grow():
    """The rates that `grown` adds, and the bounds of `tuning_gap`."""
    random = np.random.default_rng(0)
    made = searches(random, STUDIES, arms=1, rise=0.01, octaves=2, draws=4000)
    rates = [float(f"{1e-3 * 2 ** (step / 2):.4g}") for step in range(-6, 7)]
    plan = Tuning(tuple(rates[4:9]), (0, 1, 2), grows=True)
    _, bounds = made.gaps()
    for study in range(STUDIES):
        grid = plan.lr
        while True:
            losses = {
                arm: {rate: dict(enumerate(found[study, rates.index(rate)])) for rate in grid}
                for arm, found in enumerate(made.found)
            }
            if (larger := grown(plan, grid, losses)) == grid:
                break
            grid = larger
        assert grid == tuple(rates[made.first[study] : made.last[study] + 1])
        expected = bounds[:, study].tolist()  # of rates that are not rounded
        assert [tuning_gap(one) for one in losses.values()] == pytest.approx(expected, rel=1e-3)
    assert np.isfinite(bounds).any(axis=1).all()
    assert not np.isfinite(bounds).all()


def test_intervals_over_documents():
    arm, _, tokens = document_scores(20, seeds=4, documents=7)
    base = np.zeros_like(arm)
    mean, these, like = half_widths(arm, tokens)
    for study in range(20):
        found = document_intervals(base[study], arm[study], tokens, blocked=True)
        for interval, half in ((found.these, these), (found.like_these, like)):
            centre = mean[study]
            assert interval == pytest.approx((centre - half[study], centre + half[study]))
