"""What a number of seeds can find: the minimum detectable effect and its inverse."""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.special import betaincinv, nctdtr

from smolctl.analysis.stats import Sample, critical_t, degrees_of_freedom
from smolctl.analysis.study_plan import ALPHA

POWER = 0.8
MOST_SEEDS = 10_000


def minimum_detectable_effect(first: Sample, second: Sample, level: float) -> float:
    """The true difference that `welch` finds, in its direction, with 80 % power at this level.

    It uses the pooled spread of the two arms. With three runs per arm this estimate is easily off
    by a third.
    """
    within = (first.runs - 1) * first.variance + (second.runs - 1) * second.variance
    pooled = within / (first.runs + second.runs - 2)
    error = math.sqrt(pooled / first.runs + pooled / second.runs)
    return error * noncentrality(first.runs, second.runs, level)


def detectable_by_t(error: float, df: float, level: float) -> float:
    """The true difference that Student's t finds, in its direction, with 80 % power at this level;
    for differences within seeds.

    Args:
        error: standard error of the difference.
        df: its degrees of freedom.
    """
    return error * noncentrality_of_t(round(df, 6), level)


def seeds_for(detect: float, spread: float, *, blocked: bool, arms: int = 1, looks: int = 1) -> int:
    """The fewest seeds of every arm that find the true difference `detect` with 80 % power.

    Args:
        detect: in nats/token.
        spread: standard deviation in nats/token: of the differences within seeds if `blocked`, else
            of the runs of an arm.
        arms: compared with the base.
        looks: at which the study is judged; the last one is to find the difference.

    Raises:
        ValueError: `detect` or `spread` is not positive, or more than 10,000 seeds would be needed.
    """
    if not (detect > 0 and spread > 0 and math.isfinite(detect) and math.isfinite(spread)):
        raise ValueError(f"needs a positive difference and spread: {detect}, {spread}")

    def found(seeds: int) -> float:
        return found_by(seeds, spread, blocked=blocked, arms=arms, looks=looks)

    few, many = 1, 2
    while found(many) > detect:
        few, many = many, 2 * many
        if few > MOST_SEEDS:
            raise ValueError(f"a difference of {detect:g} takes more than {MOST_SEEDS:,} seeds")
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (middle, many) if found(middle) > detect else (few, middle)
    return many


def found_by(seeds: int, spread: float, *, blocked: bool, arms: int = 1, looks: int = 1) -> float:
    """The true difference that at least two seeds of every arm find with 80 % power, as
    `seeds_for`."""
    level = ALPHA / arms / looks
    if blocked:
        return spread / math.sqrt(seeds) * noncentrality_of_t(seeds - 1, level)
    return spread * math.sqrt(2 / seeds) * noncentrality(seeds, seeds, level)


@lru_cache(maxsize=256)
def noncentrality_of_t(df: float, level: float) -> float:
    """`detectable_by_t` in standard errors."""
    critical = float(critical_t(level / 2, df))
    return solve(lambda effect: float(1 - noncentral_cdf(df, effect, critical)))


@lru_cache(maxsize=256)
def noncentrality(first: int, second: int, level: float) -> float:
    """`minimum_detectable_effect` in standard errors, for equally noisy Gaussian arms of `first`
    and `second` runs.

    The t with pooled spread follows the noncentral t with first + second - 2 degrees of freedom.
    Welch's critical value moves with the first arm's share of the sum of squares, which is
    independent of that t and follows a Beta distribution: the power is the mean over it.
    """
    df = first + second - 2
    share = betaincinv((first - 1) / 2, (second - 1) / 2, (np.arange(200) + 0.5) / 200)
    ours = share * df / ((first - 1) * first)  # squared standard errors over the pooled variance
    theirs = (1 - share) * df / ((second - 1) * second)
    critical = critical_t(level / 2, degrees_of_freedom(ours / (ours + theirs), first, second))
    critical *= np.sqrt((ours + theirs) / (1 / first + 1 / second))
    return solve(lambda effect: float(1 - noncentral_cdf(df, effect, critical).mean()))


def noncentral_cdf(df: float, effect: float, critical: Any) -> Any:
    """The noncentral t's distribution function. scipy has NaN for it far from the effect, where it
    is 0 below and 1 above."""
    found = nctdtr(df, effect, critical)
    return np.where(np.isnan(found), critical > effect, found)


def solve(power_of: Callable[[float], float]) -> float:
    """The effect at which the increasing `power_of` reaches 80 %."""
    above = 1.0
    while power_of(above) < POWER:
        above *= 2
    return float(brentq(lambda effect: power_of(effect) - POWER, 0, above))
