"""The verdicts of arms against simulation, closed forms and scipy."""

import csv
import math
from pathlib import Path
from statistics import geometric_mean

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm, ttest_ind, ttest_rel

from smolctl.analysis.stats import Difference, differences, family, paired, ratio

STUDIES = 2_000
REAL_LOSSES = Path(__file__).parents[1] / "support" / "nano_losses.csv"


def margin(share):
    """Three standard errors of a share that STUDIES studies estimate."""
    return 3 * math.sqrt(share * (1 - share) / STUDIES)


def studies(draw, base_runs, arm_runs, arms):
    """The differences of STUDIES studies; draw(side, shape) gives the numbers of a side."""
    base = draw("base", (STUDIES, base_runs)).tolist()
    others = draw("arm", (STUDIES, arms, arm_runs)).tolist()
    for first, seconds in zip(base, others, strict=True):
        yield differences(first, {str(i): second for i, second in enumerate(seconds)})


def gaussian(seed, arm_spread=1.0, shift=0.0):
    rng = np.random.default_rng(seed)

    def draw(side, shape):
        numbers = rng.normal(size=shape)
        return 3 + (numbers * arm_spread + shift if side == "arm" else numbers)

    return draw


def false_alarms(draw, base_runs, arm_runs, arms):
    families = studies(draw, base_runs, arm_runs, arms)
    decided = [any(d.verdict != "inconclusive" for d in family.values()) for family in families]
    return sum(decided) / STUDIES


@pytest.mark.parametrize("arms", [1, 4])
@pytest.mark.parametrize("runs", [2, 3, 5])
def test_equal_arms_are_called_different_in_at_most_one_study_of_twenty(runs, arms):
    assert false_alarms(gaussian(runs), runs, runs, arms) < 0.05 + margin(0.05)


def test_equal_pairs_with_bases_of_their_own_are_one_family():
    """As the configurations of quantized arms are: each has a base, and all verdicts stand
    together."""
    draw = np.random.default_rng(3).normal(size=(STUDIES, 4, 2, 3)).tolist()
    found = [family(dict(enumerate(pairs))) for pairs in draw]
    decided = [any(d.verdict != "inconclusive" for d in one.values()) for one in found]
    assert sum(decided) / STUDIES < 0.05 + margin(0.05)
    # With one base they are the arms of `differences`.
    base, arms = draw[0][0][0], {"a": draw[0][1][1], "b": draw[0][2][1]}
    assert family({arm: (base, values) for arm, values in arms.items()}) == differences(base, arms)


@pytest.mark.parametrize("arms", [1, 4])
@pytest.mark.parametrize(
    ("base_runs", "arm_runs", "arm_spread"),
    [
        (3, 3, 2),
        (3, 3, 0.5),
        (5, 5, 2),
        (5, 3, 1),
        (5, 3, 2),
        (3, 5, 2),
        # The cases in which Welch's own degrees of freedom fail:
        (2, 10, 1),
        (10, 2, 2),
        (20, 3, 1),
    ],
)
def test_unequal_seeds_and_spreads_keep_the_level(base_runs, arm_runs, arm_spread, arms):
    draw = gaussian(0, arm_spread)
    assert false_alarms(draw, base_runs, arm_runs, arms) < 0.05 + margin(0.05)


def test_welch_alone_fails_at_unequal_seeds():
    """Why `degrees_of_freedom` has a bound."""
    rng = np.random.default_rng(0)
    base, arm = rng.normal(size=(10, STUDIES)), rng.normal(size=(2, STUDIES))
    assert np.mean(ttest_ind(base, arm, equal_var=False).pvalue <= 0.05) > 0.08


@pytest.mark.parametrize("arms", [1, 4])
@pytest.mark.parametrize("runs", [2, 3, 5])
def test_real_losses_keep_the_level(runs, arms):
    with REAL_LOSSES.open(newline="") as file:
        losses = [float(row["test_loss"]) for row in csv.DictReader(file)]
    assert len(losses) >= 20
    rng = np.random.default_rng(runs)

    def draw(side, shape):
        return rng.choice(losses, shape)

    assert false_alarms(draw, runs, runs, arms) < 0.05 + margin(0.05)


@pytest.mark.parametrize(("base_runs", "arm_runs"), [(2, 2), (3, 3), (5, 5), (5, 3)])
def test_the_interval_covers_the_true_difference(base_runs, arm_runs):
    families = studies(gaussian(1, shift=0.7), base_runs, arm_runs, 1)
    found = [family["0"] for family in families]
    assert all(d.confidence == 0.95 for d in found)
    covered = np.mean([d.interval[0] <= 0.7 <= d.interval[1] for d in found])
    # Welch errs on the wide side with few runs.
    assert 0.95 - margin(0.95) < covered < 0.99


@pytest.mark.parametrize("shift", [0, 3, 50])
@pytest.mark.parametrize(("base_runs", "arm_runs"), [(3, 3), (5, 5), (5, 3)])
def test_the_intervals_of_four_arms_cover_each_and_nearly_all_together(base_runs, arm_runs, shift):
    """With equal arms, with verdicts on some arms, and with verdicts on all."""
    families = studies(gaussian(1, shift=shift), base_runs, arm_runs, 4)
    covered = np.array(
        [[d.interval[0] <= shift <= d.interval[1] for d in family.values()] for family in families]
    )
    assert covered.mean(axis=0).min() > 0.95  # with room: an arm has more than Welch's 95 %
    assert covered.all(axis=1).mean() > 0.95 - margin(0.95)


def of_spread_one(runs):
    """Runs whose estimated standard deviation is 1."""
    numbers = np.arange(runs, dtype=float)
    return (numbers / numbers.std(ddof=1)).tolist()


@pytest.mark.parametrize("arms", [1, 4])
@pytest.mark.parametrize(("base_runs", "arm_runs"), [(2, 2), (3, 3), (5, 5), (5, 3)])
def test_the_minimum_detectable_effect_is_found_with_the_promised_power(base_runs, arm_runs, arms):
    """Where the spread is known to be 1, in 80 % of the studies (within Monte-Carlo error)."""
    names = [str(i) for i in range(arms)]
    design = differences(of_spread_one(base_runs), dict.fromkeys(names, of_spread_one(arm_runs)))
    effect = design["0"].minimum_detectable_effect
    families = studies(gaussian(2, shift=-effect), base_runs, arm_runs, arms)
    # The first step of Holm: the arm's own level, whatever the other arms show.
    found = [family["0"].mean < 0 and family["0"].p <= 0.05 / arms for family in families]
    assert np.mean(found) == pytest.approx(0.8, abs=margin(0.8))


def test_with_many_runs_the_minimum_detectable_effect_is_the_textbook_one():
    runs = of_spread_one(2_000)
    expected = (norm.isf(0.025) + norm.isf(0.1)) * math.sqrt(2 / 2_000)
    found = differences(runs, {"arm": runs}, power=0.9)["arm"].minimum_detectable_effect
    assert found == pytest.approx(expected, rel=1e-3)


def test_more_runs_or_fewer_arms_detect_a_smaller_effect():
    def resolved(runs, arms=1):
        family = {str(i): of_spread_one(runs) for i in range(arms)}
        return differences(of_spread_one(runs), family)["0"].minimum_detectable_effect

    assert resolved(2) > resolved(3) > resolved(5) > resolved(10)
    assert resolved(3, arms=4) > resolved(3)


@pytest.mark.parametrize("runs", [2, 3, 5, 12])
def test_equal_counts_are_the_welch_of_scipy(runs):
    rng = np.random.default_rng(runs)
    base, arm = rng.normal(3, 0.1, runs), rng.normal(2.9, 0.3, runs)
    ours = differences(base, {"arm": arm})["arm"]
    theirs = ttest_ind(arm, base, equal_var=False)
    assert ours.mean == pytest.approx(arm.mean() - base.mean())
    assert ours.p == pytest.approx(theirs.pvalue)
    assert ours.interval == pytest.approx(tuple(theirs.confidence_interval(0.95)))


def test_unequal_counts_are_the_welch_of_scipy_where_the_bound_does_not_bind():
    base, arm = [3.0, 3.1, 3.2, 3.3, 3.4], [2.0, 3.0, 4.5]
    ours = differences(base, {"arm": arm})["arm"]
    theirs = ttest_ind(arm, base, equal_var=False)
    assert ours.p == pytest.approx(theirs.pvalue)


def test_holm_by_hand():
    """Three p values; the second fails its step, so only the first is decided."""
    base = [3.00, 3.02, 3.04, 3.06]
    shifts = {"same": 0.001, "some": 0.046, "far": -0.3}
    arms = {name: [loss + shift for loss in base] for name, shift in shifts.items()}
    found = differences(base, arms)
    p = {name: ttest_ind(base, arm, equal_var=False).pvalue for name, arm in arms.items()}
    assert p["far"] <= 0.05 / 3
    assert 0.05 / 2 < p["some"] < 0.05  # alone it would have been decided
    assert {name: d.p for name, d in found.items()} == pytest.approx(p)
    assert {name: d.verdict for name, d in found.items()} == {
        "same": "inconclusive",
        "some": "inconclusive",
        "far": "better",
    }
    assert {name: d.confidence for name, d in found.items()} == pytest.approx(
        {"far": 1 - 0.05 / 3, "some": 1 - 0.05 / 2, "same": 1 - 0.05 / 2}
    )
    assert differences(base, {"some": arms["some"]})["some"].verdict == "worse"


def test_only_arms_that_are_tested_cost_confidence():
    base, arm = [3.0, 3.1, 3.3], [2.9, 3.0, 3.0]
    alone = differences(base, {"arm": arm})["arm"]
    assert differences(base, {"one run": [1.0], "arm": arm})["arm"] == alone
    assert differences(base, {}) == {}


def test_a_higher_score_can_be_the_better_one():
    base, arm = [0.50, 0.51, 0.52], [0.80, 0.81, 0.82]
    assert differences(base, {"arm": arm})["arm"].verdict == "worse"
    assert differences(base, {"arm": arm}, lower_is_better=False)["arm"].verdict == "better"


@pytest.mark.parametrize(("base", "arm"), [([3.0], [1.0, 1.1]), ([3.0, 3.1], [1.0]), ([3], [1])])
def test_one_run_decides_nothing(base, arm):
    found = differences(base, {"arm": arm})["arm"]
    mean = np.mean(arm) - np.mean(base)
    assert found == Difference(pytest.approx(mean), None, 0.95, None, None, "inconclusive")


@pytest.mark.parametrize("loss", [0.1, 0.3])
def test_no_spread_at_all_decides_nothing(loss):
    found = differences([0.1] * 3, {"arm": [loss] * 3})["arm"]
    assert found == Difference(loss - 0.1, None, 0.95, None, None, "inconclusive")


def test_one_arm_without_spread_is_tested():
    found = differences([0.1] * 3, {"arm": [0.3, 0.31, 0.32]})["arm"]
    assert found.verdict == "worse"
    assert found.interval == pytest.approx((0.21 - 0.02484, 0.21 + 0.02484), abs=1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_refused(bad):
    with pytest.raises(ValueError, match="finite"):
        differences([3.0, bad], {"arm": [3.0, 3.1]})
    with pytest.raises(ValueError, match="finite"):
        differences([3.0, 3.1], {"arm": [3.0, bad]})
    with pytest.raises(ValueError, match="finite"):
        paired([3.0, 3.1], [3.0, bad])
    with pytest.raises(ValueError, match="at least one"):
        differences([], {"arm": [3.0]})


# Multiples of 1/1024, which sums and differences keep exactly: runs near a level of their arm.
RUNS = st.builds(
    lambda level, spreads: [(level + spread) / 1024 for spread in spreads],
    st.integers(-4096, 4096),
    st.lists(st.integers(-256, 256), min_size=1, max_size=6),
)
ARMS = st.dictionaries(st.sampled_from("abcd"), RUNS, min_size=1)


def same(first, second):
    assert first.keys() == second.keys()
    for arm, one in first.items():
        other = second[arm]
        assert one.verdict == other.verdict
        assert one.confidence == other.confidence
        numbers = [
            (d.mean, *(d.interval or ()), d.p or 0, d.minimum_detectable_effect or 0)
            for d in (one, other)
        ]
        assert numbers[0] == pytest.approx(numbers[1], rel=1e-6, abs=1e-9)


@given(RUNS, RUNS)
def test_swapping_base_and_arm_reverses_the_difference(base, arm):
    there = differences(base, {"x": arm})["x"]
    back = differences(arm, {"x": base})["x"]
    assert back.mean == -there.mean
    assert (back.interval is None) == (there.interval is None)
    if there.interval and back.interval:
        assert back.interval == pytest.approx((-there.interval[1], -there.interval[0]), rel=1e-6)
    opposite = {"better": "worse", "worse": "better", "inconclusive": "inconclusive"}
    assert back.verdict == opposite[there.verdict]


@given(RUNS, ARMS, st.integers(-4096, 4096))
def test_a_constant_added_to_all_changes_nothing(base, arms, constant):
    moved = {arm: [loss + constant for loss in losses] for arm, losses in arms.items()}
    same(differences(base, arms), differences([loss + constant for loss in base], moved))


@given(st.data(), RUNS, ARMS)
def test_neither_the_order_of_runs_nor_of_arms_matters(data, base, arms):
    order = data.draw(st.permutations(list(arms)))
    shuffled = {arm: data.draw(st.permutations(arms[arm])) for arm in order}
    same(differences(base, arms), differences(data.draw(st.permutations(base)), shuffled))


@given(RUNS, ARMS)
def test_the_interval_excludes_zero_exactly_where_there_is_a_verdict(base, arms):
    for found in differences(base, arms).values():
        excludes = found.interval is not None and not found.interval[0] <= 0 <= found.interval[1]
        assert excludes == (found.verdict != "inconclusive")
        if excludes:
            assert found.verdict == ("better" if found.mean < 0 else "worse")


def test_paired_items_are_the_t_interval_of_scipy():
    rng = np.random.default_rng(0)
    hard = rng.normal(size=100)  # what the checkpoints share cancels
    first, second = hard + rng.normal(0, 0.1, 100), hard + rng.normal(0.05, 0.1, 100)
    found = paired(first, second)
    assert found.mean == pytest.approx((second - first).mean())
    theirs = ttest_rel(second, first).confidence_interval(0.95)
    assert found.interval == pytest.approx(tuple(theirs))


@pytest.mark.parametrize("items", [[1.0], [0.0, 1.0, 1.0]])
def test_paired_items_without_spread_have_no_interval(items):
    found = paired(items, items)
    assert (found.mean, found.interval) == (0, None)


def test_a_ratio_is_the_welch_of_scipy_on_logarithms():
    first, second = [300.0, 310.0, 290.0, 305.0], [150.0, 160.0, 140.0, 155.0]
    found = ratio(first, second)
    assert found.mean == pytest.approx(geometric_mean(second) / geometric_mean(first))
    test = ttest_ind(np.log(second), np.log(first), equal_var=False)
    bounds = test.confidence_interval(0.95)
    assert found.interval == pytest.approx((math.exp(bounds.low), math.exp(bounds.high)))
    # Turned round, and in another unit.
    back = ratio([7 * value for value in second], [7 * value for value in first])
    assert back.mean == pytest.approx(1 / found.mean)
    assert back.interval == pytest.approx([1 / bound for bound in reversed(found.interval)])


def test_a_ratio_of_one_run_has_no_interval():
    assert ratio([2.0], [3.0, 3.0]).interval is None
    assert ratio([2.0], [3.0, 3.0]).mean == pytest.approx(1.5)
    with pytest.raises(ValueError, match="positive"):
        ratio([0.0], [1.0])


def test_paired_items_must_be_the_same_items():
    with pytest.raises(ValueError, match="zip"):
        paired([1.0, 2.0], [1.0])
