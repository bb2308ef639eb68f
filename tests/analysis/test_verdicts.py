"""The rule of the verdict, one condition at a time."""

import dataclasses
import math

import pytest

from smolctl.analysis.blocks import by_seed, within_blocks
from smolctl.analysis.power import detectable_by_t
from smolctl.analysis.stats import SMALLEST_SPREAD
from smolctl.analysis.verdicts import ArmResult, Design, Missing, Verdict, judge

SEEDS = frozenset(range(6))
LOSSES = dict(enumerate([3.00, 3.02, 2.99, 3.04, 3.01, 2.98]))
NOISE = [0.003, -0.002, 0.001, -0.004, 0.002, 0.000]
BASE = ArmResult(
    losses=LOSSES,
    model="base",
    rate=(1e-3,),
    planned=SEEDS,
    tuning_gap=0.0,
    documents=30,
    trigram=3.5,
)


def arm(shift, **changes):
    losses = {seed: loss + shift + NOISE[seed] for seed, loss in LOSSES.items()}
    return dataclasses.replace(BASE, **({"losses": losses, "model": "arm"} | changes))


def verdict(arm, base=BASE, *, margin=0.01, looks=(), blocked=True):
    return judge({"base": base, "arm": arm}, Design(blocked, margin, looks))["arm"]


def without(result, *seeds):
    losses = {seed: loss for seed, loss in result.losses.items() if seed not in seeds}
    return dataclasses.replace(result, losses=losses)


@pytest.mark.parametrize(
    ("shift", "expected"),
    [(-0.05, "better"), (0.05, "worse"), (0.001, "equivalent"), (0.002, "inconclusive")],
)
def test_the_four_verdicts(shift, expected):
    found = verdict(arm(shift), margin=0.004)
    assert found.verdict == expected
    assert found.missing == ((Missing.SEEDS,) if expected == "inconclusive" else ())
    assert not found.exploratory
    assert found.widened == found.interval
    assert verdict(arm(0.001), margin=None).verdict == "inconclusive"


def test_within_the_margin_it_is_equivalent_also_where_it_excludes_zero():
    assert verdict(arm(0.006)).verdict == "equivalent"
    assert verdict(arm(0.006), margin=None).verdict == "worse"


def test_the_numbers_of_blocked_arms():
    found = verdict(arm(-0.05))
    estimate = within_blocks(*by_seed(LOSSES, arm(-0.05).losses), least_spread=SMALLEST_SPREAD)
    assert found.paired
    assert found.interval == pytest.approx(estimate.interval(0.95))
    assert found.minimum_detectable_effect == pytest.approx(
        detectable_by_t(estimate.error, estimate.df, 0.05)
    )
    assert found.gain_of_pairing > 10
    apart = verdict(arm(-0.05), blocked=False)
    assert (apart.paired, apart.gain_of_pairing) == (False, None)
    assert apart.interval[1] - apart.interval[0] > 3 * (found.interval[1] - found.interval[0])


def test_one_confidence_for_all_arms_and_looks():
    arms = {"base": BASE, "a": arm(-0.05), "b": arm(0), "c": arm(0.2)}
    found = judge(arms, Design(True, 0.01, looks=(3, 6)))
    assert list(found) == ["a", "b", "c"]
    assert {one.confidence for one in found.values()} == {1 - 0.05 / 3 / 2}
    assert verdict(arm(0)).confidence == 1 - 0.05
    assert verdict(arm(0), looks=(3, 6)).confidence == 1 - 0.05 / 2
    # Where fewer arms are judged than were compared, and those with fewer seeds than planned.
    few = {name: dataclasses.replace(arms[name], planned=frozenset({0, 1, 2})) for name in "ab"}
    design = Design(True, 0.01, looks=(3, 6), comparisons=3)
    assert {one.confidence for one in judge(few, design).values()} == {1 - 0.05 / 3 / 2}
    assert judge({"base": BASE}, Design(True)) == {}


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        (0.0, 0.02, Verdict.BETTER),
        (0.5, 0.02, Verdict.BETTER),  # the arm could only be better still
        (0.0, 0.06, Verdict.INCONCLUSIVE),  # the base could catch up
        (0.0, None, Verdict.INCONCLUSIVE),
        (None, 0.02, Verdict.BETTER),
        (0.0, math.inf, Verdict.INCONCLUSIVE),
    ],
)
def test_the_tuning_gaps_widen_the_interval(ours, theirs, expected):
    base = dataclasses.replace(BASE, tuning_gap=theirs)
    found = verdict(arm(-0.05, tuning_gap=ours), base)
    assert found.verdict is expected
    assert found.missing == (() if expected is Verdict.BETTER else (Missing.TUNING,))
    assert found.gaps == tuple(math.inf if gap is None else gap for gap in (theirs, ours))
    if None in (ours, theirs) or math.inf in (ours, theirs):
        assert found.widened is None
    else:
        low, high = found.interval
        assert found.widened == pytest.approx((low - ours, high + theirs))


def test_tuning_and_seeds_are_missing_where_the_other_alone_would_not_do():
    assert verdict(arm(0.002, tuning_gap=0.0), margin=0.004).missing == (Missing.SEEDS,)
    both = (Missing.SEEDS, Missing.TUNING)
    assert verdict(arm(0.002, tuning_gap=None), margin=0.004).missing == both
    assert verdict(arm(0.001, tuning_gap=0.02), margin=0.004).missing == (Missing.TUNING,)


def test_one_model_at_one_rate_has_nothing_to_tune():
    control = arm(0.001, model="base", tuning_gap=None)
    base = dataclasses.replace(BASE, tuning_gap=None)
    assert verdict(control, base).verdict == "equivalent"
    assert verdict(control, base).gaps == (0, 0)
    other = dataclasses.replace(control, rate=(2e-3,))
    assert verdict(other, base).missing == (Missing.TUNING,)
    assert verdict(arm(-0.5, model="base", rate=(2e-3,))).missing == (Missing.TUNING,)


@pytest.mark.parametrize(
    ("changes", "missing"),
    [
        ({"documents": 4}, Missing.DOCUMENTS),
        ({"trigram": 2.5}, Missing.REGIME),
        ({"trigram": None}, Missing.REGIME),
    ],
)
def test_what_forbids_a_verdict_of_either_arm(changes, missing):
    for found in (
        verdict(arm(-0.05, **changes)),
        verdict(arm(-0.05), dataclasses.replace(BASE, **changes)),
    ):
        assert (found.verdict, found.missing) == (Verdict.INCONCLUSIVE, (missing,))
        assert found.interval[1] < 0  # shown all the same


def test_all_that_is_missing_is_named():
    found = verdict(arm(0.002, documents=2, trigram=None), margin=0.004)
    assert found.missing == (Missing.SEEDS, Missing.DOCUMENTS, Missing.REGIME)


@pytest.mark.parametrize(
    ("looks", "finished", "is_judged"),
    [
        ((), 5, False),
        ((), 6, True),
        ((3, 6), 2, False),
        ((3, 6), 3, True),
        ((3, 6), 4, False),  # between looks: a verdict here is a look that was not declared
        ((3, 6), 6, True),
    ],
)
def test_a_study_is_judged_at_its_looks_only(looks, finished, is_judged):
    later = range(finished, 6)
    found = verdict(without(arm(-0.3), *later), without(BASE, *later), looks=looks)
    assert found.verdict == ("better" if is_judged else "inconclusive")
    assert found.missing == (() if is_judged else (Missing.SEEDS,))
    if finished < 6:  # one arm ahead of the other is no look either
        assert verdict(arm(-0.3), without(BASE, *later), looks=looks).missing == (Missing.SEEDS,)


def test_an_arm_with_fewer_planned_seeds_is_complete_with_those():
    few = dataclasses.replace(without(arm(-0.3), 3, 4, 5), planned=frozenset({0, 1, 2}))
    assert verdict(few).verdict == "better"
    assert verdict(without(few, 2)).missing == (Missing.SEEDS,)


def test_seeds_beyond_the_plan_or_no_plan_are_exploratory():
    planned = frozenset(range(5))
    base = dataclasses.replace(BASE, planned=planned)
    for found in (
        verdict(arm(-0.05, planned=planned), base),
        verdict(arm(-0.05, planned=planned)),
        verdict(arm(-0.05, planned=None), dataclasses.replace(BASE, planned=None)),
    ):
        assert found.verdict == "better"
        assert found.exploratory


def diverged(result, *seeds):
    return dataclasses.replace(without(result, *seeds), diverged=frozenset(seeds))


@pytest.mark.parametrize(
    ("shift", "of_arm", "of_base", "of_both"),
    [(-0.05, False, True, False), (0.05, True, False, False), (0.001, False, False, False)],
)
def test_a_diverged_seed_allows_only_what_it_cannot_flatter(shift, of_arm, of_base, of_both):
    for base, other, stands in (
        (BASE, diverged(arm(shift), 3), of_arm),
        (diverged(BASE, 3), arm(shift), of_base),
        (diverged(BASE, 3), diverged(arm(shift), 3), of_both),
    ):
        found = verdict(other, base)
        assert (found.verdict != "inconclusive") == stands
        assert found.missing == (() if stands else (Missing.SEEDS,))
        assert found.interval is not None


def test_one_run_has_no_interval():
    single = frozenset({0})
    found = verdict(
        dataclasses.replace(without(arm(-0.5), 1, 2, 3, 4, 5), planned=single),
        dataclasses.replace(without(BASE, 1, 2, 3, 4, 5), planned=single),
    )
    assert (found.interval, found.widened, found.p) == (None, None, None)
    assert found.mean == pytest.approx(-0.5 + NOISE[0])
    assert found.missing == (Missing.SEEDS,)


def test_runs_without_spread_have_that_of_the_floor():
    flat = dataclasses.replace(BASE, losses=dict.fromkeys(SEEDS, 3.0))
    found = verdict(arm(0, losses=dict.fromkeys(SEEDS, 2.9)), flat)
    assert found.verdict == "better"
    assert found.interval[1] - found.interval[0] > SMALLEST_SPREAD
    assert found.gain_of_pairing is None


def test_arms_without_common_seeds_are_not_paired():
    moved = {seed + 10: loss for seed, loss in arm(-0.3).losses.items()}
    found = verdict(arm(-0.3, losses=moved, planned=frozenset(moved)))
    assert not found.paired
    assert found.verdict == "better"


def test_a_loss_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="finite"):
        verdict(dataclasses.replace(BASE, losses={0: math.nan, 1: 3.0}))
    with pytest.raises(ValueError, match="at least one"):
        verdict(dataclasses.replace(BASE, losses={}, diverged=SEEDS))
