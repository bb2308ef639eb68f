"""Differences within seeds."""

import math

import numpy as np
import pytest
from scipy.stats import ttest_rel
from support.simulated import losses

from smolctl.analysis.blocks import by_seed, gain_of_pairing, share_of_pairs, within_blocks
from smolctl.analysis.stats import sample, welch

NAN = math.nan


def test_complete_blocks_are_the_paired_t_of_scipy():
    random = np.random.default_rng(0)
    base, arm = random.normal(size=6), random.normal(size=6)
    found = within_blocks(base, arm)
    theirs = ttest_rel(arm, base)
    assert found.p == pytest.approx(theirs.pvalue)
    assert found.interval(0.9) == pytest.approx(tuple(theirs.confidence_interval(0.9)))


def test_seeds_of_one_arm_alone_are_left_aside():
    base, arm = np.array([3.0, 3.1, 3.3, 9.0]), np.array([2.9, 3.05, 3.2, NAN])
    assert within_blocks(base, arm) == within_blocks(base[:3], arm[:3])
    assert within_blocks(arm, base).mean == -within_blocks(base, arm).mean


def test_seeds_of_both_arms_alone_are_an_independent_difference():
    base, arm = np.array([3.0, 3.1, 3.3, 3.5, NAN]), np.array([2.9, 3.05, 3.2, NAN, 3.0])
    found = within_blocks(base, arm)
    share = share_of_pairs(3, 1, 1)
    assert found.mean == pytest.approx(share * (arm - base)[:3].mean() + (1 - share) * -0.5)
    assert found.df <= 2
    back = within_blocks(arm, base)
    assert (back.mean, back.error) == (pytest.approx(-found.mean), pytest.approx(found.error))


@pytest.mark.parametrize("shared", [0, 1])
def test_fewer_than_two_pairs_are_compared_as_independent(shared):
    base = np.array([3.0, 3.1, 3.3] + [NAN] * (3 - shared))
    arm = np.array([NAN] * (3 - shared) + [2.9, 3.05, 3.2])
    both = [one[np.isfinite(one)] for one in (base, arm)]
    assert within_blocks(base, arm) == welch(sample(both[0]), sample(both[1]))


def test_one_run_or_no_spread_is_no_estimate():
    assert within_blocks(np.array([3.0]), np.array([2.0])) is None
    assert within_blocks(np.array([3.0, 3.5]), np.array([2.0, 2.5])) is None
    found = within_blocks(np.array([3.0, 3.5]), np.array([2.0, 2.5]), least_spread=0.1)
    assert (found.mean, found.error) == (-1, pytest.approx(0.1 / math.sqrt(2)))


def test_by_seed_lines_up_what_two_arms_share():
    base, arm = by_seed({5: 3.0, 1: 2.0}, {9: 1.0, 5: 4.0})
    assert np.array_equal(base, [2.0, 3.0, NAN], equal_nan=True)
    assert np.array_equal(arm, [NAN, 4.0, 1.0], equal_nan=True)


@pytest.mark.parametrize(("correlation", "gain"), [(0.0, 1), (0.5, 2), (0.9, 10)])
def test_the_gain_of_pairing_is_right_in_the_median(correlation, gain):
    random = np.random.default_rng(1)
    base, (arm,) = losses(random, 400, arms=1, seeds=5, correlation=correlation)
    found = [gain_of_pairing(*pair) for pair in zip(base, arm, strict=True)]
    assert np.median(found) == pytest.approx(gain, rel=0.2)


def test_the_gain_of_two_pairs_or_of_no_spread_is_unknown():
    assert gain_of_pairing(np.array([1.0, 2.0, NAN]), np.array([1.5, 2.2, 3.0])) is None
    assert gain_of_pairing(np.array([1.0, 2.0, 4.0]), np.array([2.0, 3.0, 5.0])) is None
