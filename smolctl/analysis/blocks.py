"""Differences within seeds.

A seed fixes the order of the data, so the runs of all arms with one seed are a block: what the
block adds to each of its runs cancels in their difference.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from smolctl.analysis.stats import SMALLEST_SPREAD, Estimate, sample, welch

Numbers = NDArray[np.float64]

# Of the losses of two arms within a seed; it sets the weights of incomplete blocks only. Published
# studies whose arms take equal steps have 0.2 to 0.9. Another value costs precision, not validity.
TYPICAL_CORRELATION = 0.75
FEWEST_FOR_GAIN = 3  # pairs


def by_seed(base: Mapping[int, float], arm: Mapping[int, float]) -> tuple[Numbers, Numbers]:
    """The numbers of two arms over the seeds of either; NaN where an arm lacks one."""
    seeds = sorted({*base, *arm})
    first, second = (np.array([one.get(seed, np.nan) for seed in seeds]) for one in (base, arm))
    return first, second


def over_seeds(base: Numbers, arm: Numbers, *, blocked: bool) -> Estimate | None:
    """The difference of two arms that every verdict rests on, arm minus base: within seeds if
    `blocked`, else of independent arms. None if an arm has one run.

    Args:
        base, arm: losses in nats/token, (..., seeds); NaN for a seed that an arm lacks, the same
            seeds everywhere.
    """
    if blocked:
        return within_blocks(base, arm, least_spread=SMALLEST_SPREAD)
    first, second = (
        sample(
            one[..., np.isfinite(one).reshape(-1, one.shape[-1]).all(0)],
            least_spread=SMALLEST_SPREAD,
        )
        for one in (base, arm)
    )
    return welch(first, second)


def within_blocks(base: Numbers, arm: Numbers, *, least_spread: float = 0) -> Estimate | None:
    """Arm minus base, compared within seeds; None if an arm has one run or there is no spread.

    Seeds of both arms give paired differences. The other seeds help only if both arms have some:
    then the difference of their means is a second, independent estimate, and the two are averaged
    with weights that depend on counts alone. Its variance is taken from all runs of an arm, and
    the degrees of freedom are Satterthwaite's (1946, Biometrics Bull. 2), at most those of the
    pairs: without that bound 12 % of equal arms are called different at 2 pairs and 1 and 8 more
    seeds, and with the partially overlapping t of Derrick et al. (2017, J. Mod. Appl. Stat. Methods
    16) 6 %. With fewer than two pairs the arms are compared as independent.

    Args:
        base, arm: (..., seeds) in nats/token; NaN for a seed that an arm lacks, the same seeds
            everywhere.
        least_spread: a smaller spread is raised to it.
    """
    has_base, has_arm = (np.isfinite(one).reshape(-1, one.shape[-1]).all(0) for one in (base, arm))
    both = has_base & has_arm
    only_base, only_arm = has_base & ~both, has_arm & ~both
    first = sample(base[..., has_base], least_spread=least_spread)
    second = sample(arm[..., has_arm], least_spread=least_spread)
    pairs = int(both.sum())
    if pairs < 2:
        return welch(first, second)
    within = sample((arm - base)[..., both], least_spread=least_spread)
    if not np.all(within.variance > 0):
        return None
    if not (only_base.any() and only_arm.any()):
        return Estimate(within.mean, np.sqrt(within.variance / pairs), pairs - 1)
    counts = int(only_base.sum()), int(only_arm.sum())
    share = share_of_pairs(pairs, *counts)
    rest = arm[..., only_arm].mean(-1) - base[..., only_base].mean(-1)
    parts = [
        (share**2 * within.variance / pairs, pairs - 1),
        ((1 - share) ** 2 * first.variance / counts[0], first.runs - 1),
        ((1 - share) ** 2 * second.variance / counts[1], second.runs - 1),
    ]
    squared = sum(variance for variance, _ in parts)
    satterthwaite = squared**2 / sum(variance**2 / df for variance, df in parts)
    mean = share * within.mean + (1 - share) * rest
    return Estimate(mean, np.sqrt(squared), np.minimum(satterthwaite, pairs - 1))


def share_of_pairs(pairs: int, only_base: int, only_arm: int) -> float:
    """The weight of the paired differences: the best one for equally noisy arms of
    `TYPICAL_CORRELATION`."""
    paired = pairs / (2 * (1 - TYPICAL_CORRELATION))
    rest = 1 / (1 / only_base + 1 / only_arm)
    return paired / (paired + rest)


def gain_of_pairing(base: Numbers, arm: Numbers) -> float | None:
    """How many times the seeds pairing is worth: the variance of a difference between runs of
    independent seeds, over that within seeds. Below 1 pairing loses.

    Where pairing gains nothing and arms are equally noisy, the estimate is above 1 as often as
    below. None with fewer than three pairs, or without spread.

    Args:
        base, arm: (seeds,), NaN for a seed that an arm lacks.
    """
    both = np.isfinite(base) & np.isfinite(arm)
    if both.sum() < FEWEST_FOR_GAIN:
        return None
    within = sample((arm - base)[both]).variance
    if not within > 0:
        return None
    return float((sample(base[both]).variance + sample(arm[both]).variance) / within)
