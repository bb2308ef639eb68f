"""The verdicts of arms against simulation, closed forms and scipy."""

import csv
import math
from pathlib import Path
from statistics import geometric_mean

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import t, ttest_ind, ttest_rel

from smolctl.analysis.stats import SMALLEST_SPREAD, critical_t, paired, ratio, sample, welch
from smolctl.analysis.verdicts import Difference, differences, differences_of_pairs

REAL_LOSSES = Path(__file__).parents[1] / "support" / "nano_losses.csv"


def test_equal_pairs_with_bases_of_their_own_are_one_family():
    """As the configurations of quantized arms are: each has a base, and all verdicts stand
    together."""
    random = np.random.default_rng(3).normal(size=(300, 4, 2, 3)).tolist()
    found = [differences_of_pairs(dict(enumerate(pairs))) for pairs in random]
    assert {d.confidence for one in found for d in one.values()} == {1 - 0.05 / 4}
    decided = [any(d.verdict != "inconclusive" for d in one.values()) for one in found]
    assert np.mean(decided) < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 300)
    # With one base they are the arms of `differences`.
    base, arms = random[0][0][0], {"a": random[0][1][1], "b": random[0][2][1]}
    assert differences_of_pairs(
        {arm: (base, values) for arm, values in arms.items()}
    ) == differences(base, arms)


def test_welch_alone_fails_at_unequal_seeds_and_spreads():
    """Why `degrees_of_freedom` has a bound."""
    random = np.random.default_rng(0)
    base, arm = random.normal(size=(10, 2_000)), random.normal(size=(2, 2_000))
    assert np.mean(ttest_ind(base, arm, equal_var=False).pvalue <= 0.05) > 0.08
    base, arm = random.normal(size=(3, 20_000)), 5 * random.normal(size=(3, 20_000))
    alone = ttest_ind(base, arm, equal_var=False).pvalue <= 0.05 / 4
    assert np.mean(alone) > 1.4 * 0.05 / 4
    ours = welch(sample(base.T), sample(arm.T)).p <= 0.05 / 4
    assert np.mean(ours) < 1.1 * 0.05 / 4


@pytest.mark.parametrize("arms", [1, 4])
@pytest.mark.parametrize("runs", [2, 3, 5])
def test_real_losses_keep_the_level(runs, arms):
    with REAL_LOSSES.open(newline="") as file:
        losses = [float(row["test_loss"]) for row in csv.DictReader(file)]
    assert len(losses) >= 20
    random = np.random.default_rng(runs)
    base = sample(random.choice(losses, (10_000, runs)), least_spread=SMALLEST_SPREAD)
    found = [
        welch(base, sample(random.choice(losses, (10_000, runs)), least_spread=SMALLEST_SPREAD)).p
        for _ in range(arms)
    ]
    assert np.mean(np.min(found, axis=0) <= 0.05 / arms) < 0.05


@pytest.mark.parametrize("runs", [(2, 2), (3, 3), (5, 5), (12, 12), (5, 3), (2, 10)])
def test_the_test_is_welchs_with_fewer_degrees_of_freedom(runs):
    random = np.random.default_rng(sum(runs))
    base, arm = random.normal(3, 0.1, runs[0]), random.normal(2.9, 0.3, runs[1])
    ours = differences(base, {"arm": arm})["arm"]
    theirs = ttest_ind(arm, base, equal_var=False)
    estimate = welch(sample(base), sample(arm))
    fewer, more = sorted(runs)
    gain = min(1, theirs.df / (fewer - 1) - 1)
    assert estimate.df == pytest.approx((fewer - 1) * (1 + gain**2 / 2 * fewer / more))
    assert fewer - 1 <= estimate.df <= max(theirs.df, fewer - 1)
    assert ours.mean == pytest.approx(arm.mean() - base.mean())
    assert ours.p == pytest.approx(2 * t.sf(abs(theirs.statistic), estimate.df))
    half = t.isf(0.025, estimate.df) * ours.mean / theirs.statistic
    assert ours.interval == pytest.approx((ours.mean - abs(half), ours.mean + abs(half)))


def test_bonferroni_by_hand():
    """Three p values at one level: what is decided does not depend on the others' results."""
    base = [3.00, 3.02, 3.04, 3.06]
    shifts = {"same": 0.001, "some": 0.053, "far": -0.3}
    arms = {name: [loss + shift for loss in base] for name, shift in shifts.items()}
    found = differences(base, arms)
    assert found["far"].p <= 0.05 / 3 < found["some"].p < 0.05
    assert {name: d.verdict for name, d in found.items()} == {
        "same": "inconclusive",
        "some": "inconclusive",
        "far": "better",
    }
    assert {d.confidence for d in found.values()} == {1 - 0.05 / 3}
    assert differences(base, {"some": arms["some"]})["some"].verdict == "worse"


def test_every_arm_costs_confidence_also_one_without_an_interval():
    base, arm = [3.0, 3.1, 3.3], [2.9, 3.0, 3.0]
    found = differences(base, {"one run": [1.0], "arm": arm})
    assert {d.confidence for d in found.values()} == {0.975}
    assert differences(base, {}) == {}


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


def test_a_spread_below_the_least_is_raised_to_it():
    found = welch(*(sample([loss] * 3, least_spread=0.01) for loss in (0.1, 0.3)))
    half = critical_t(0.025, 3) * 0.01 * math.sqrt(2 / 3)
    assert found.interval(0.95) == pytest.approx((0.2 - half, 0.2 + half))


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


def test_a_ratio_is_the_difference_of_logarithms():
    first, second = [300.0, 310.0, 290.0, 305.0], [150.0, 160.0, 140.0, 155.0]
    found = ratio(first, second)
    assert found.mean == pytest.approx(geometric_mean(second) / geometric_mean(first))
    bounds = welch(sample(np.log(first)), sample(np.log(second))).interval(0.95)
    assert found.interval == pytest.approx([math.exp(bound) for bound in bounds])
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
