"""Ladders of sizes by the thousand: false verdicts on what becomes of a difference with size."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from support.simulated import SPREAD, Shares, compare, losses, shares

from smolctl.analysis.size_ladder import Line, Rung, Trend, judged_trend

SMALLEST, LARGEST = 5e5, 135e6  # the first size; one beyond all of them
# The true difference, in spreads of a run, against log size: none, the same at all, gone at 2 M.
TRUTHS: dict[str, Callable[[float], float]] = {
    "none": lambda x: 0.0,
    "constant": lambda x: 1.5,
    "gone at 2 M": lambda x: 0.8 * (math.log(2e6) - x),
}


def false_trends(
    studies: int,
    truth: str,
    *,
    seeds: Sequence[int],
    spreads: Sequence[float],
    at: float,
    arms: int,
    blocked: bool = True,
    state: int = 7,
) -> Shares:
    """Ladders with a false verdict on any arm at the size `at`, and bands there that cover.

    Arms share the runs of the base, and every size is compared on its own.

    Args:
        seeds, spreads: by size, each twice the one before; spreads in units of SPREAD.
    """
    random = np.random.default_rng(state)
    sizes = [SMALLEST * 2**number for number in range(len(seeds))]
    true = [SPREAD * TRUTHS[truth](math.log(size)) for size in (*sizes, at)]
    found = []
    for size, n, spread, shift in zip(sizes, seeds, spreads, true[:-1], strict=True):
        base, others = losses(
            random,
            studies,
            arms=arms,
            seeds=n,
            correlation=0.5 * blocked,
            ratio=spread,
            base_ratio=spread,
        )
        found.append((size, n, compare(base, others + shift, blocked)))
    wrong, covered = np.zeros((2, arms, studies), bool)
    for arm in range(arms):
        rungs = [rung_of_arm(size, n, one, arm) for size, n, one in found]
        band, first = (line_of(rungs, arms).at(size) for size in (at, SMALLEST))
        covered[arm] = (band.low <= true[-1]) & (true[-1] <= band.high)
        excludes = (band.low > 0) | (band.high < 0) | (first.low > 0) | (first.high < 0)
        for study in np.flatnonzero(excludes):  # the trend of any other is unknown
            line = line_of([one_of(rung, study) for rung in rungs], arms)
            trend = judged_trend(line, at)[0]
            wrong[arm, study] = is_false(trend, line.at(at).side, true)
    return [shares(wrong, covered)]


def line_of(rungs: Sequence[Rung], arms: int) -> Line:
    return Line(tuple(rungs), 0.05 / arms / 2)


def rung_of_arm(size: float, seeds: int, estimate: Any, arm: int) -> Rung:
    """The differences of an arm in all studies."""
    df = np.broadcast_to(estimate.df, estimate.mean.shape)
    return Rung(size, estimate.mean[arm], estimate.error[arm], df[arm], seeds)


def one_of(rung: Any, study: int) -> Rung:
    """The difference in one study."""
    one = (float(numbers[study]) for numbers in (rung.mean, rung.error, rung.df))
    first, second = (float(np.broadcast_to(gap, rung.df.shape)[study]) for gap in rung.gaps)
    return Rung(rung.parameters, *one, rung.seeds, (first, second))


def is_false(trend: Trend, side: int, true: Sequence[float]) -> bool:
    """Whether a verdict is not true of the true differences, those of the sizes and, last, that at
    the size asked about."""
    first, there = np.sign([round(one, 9) for one in (true[0], true[-1])])
    slope = np.sign(round(true[-2] - true[0], 9))
    if trend is Trend.PERSISTS:
        return bool(side != there)
    if trend is Trend.GROWS:
        return bool(side != there or slope != there)
    return trend is Trend.SHRINKS and bool(slope == 0 or slope not in (-there, -first))
