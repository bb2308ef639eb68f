"""Means over runs with their uncertainty; scipy does the mathematics.

The unit is the run: arms differ in one number per run, such as the final test loss in nats/token,
and the spread is that between the seeds of an arm. Every difference is in the unit of its input.

Where a function takes arrays, the last axis holds the runs; the others are studies, one for a
table, thousands in the simulations that check the error rates.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtr, stdtrit

# In nats/token, a tenth of the smallest spread of a published study. Few runs can look more alike
# than training is; a smaller spread between runs is raised to it.
SMALLEST_SPREAD = 1e-4


@dataclass(frozen=True)
class Interval:
    """A mean, or a ratio of means, with its interval, of 95 % where nothing else is said; None for
    one item, one run in an arm, or no spread."""

    mean: float
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class Sample:
    """Statistics of an arm; `variance` (unbiased) is NaN for one run."""

    runs: int
    mean: Any
    variance: Any


@dataclass(frozen=True)
class Estimate:
    """A difference, its standard error and the degrees of freedom for Student's t."""

    mean: Any
    error: Any
    df: Any

    @property
    def p(self) -> Any:
        """Two-sided, of no difference."""
        return 2 * stdtr(self.df, -np.abs(self.mean) / self.error)

    def half_width(self, confidence: float) -> Any:
        return self.error * critical_t((1 - confidence) / 2, self.df)

    def interval(self, confidence: float) -> tuple[Any, Any]:
        half = self.half_width(confidence)
        return self.mean - half, self.mean + half


def sample(values: ArrayLike, *, least_spread: float = 0) -> Sample:
    """Mean and variance over the last axis; equal values have zero variance.

    Args:
        least_spread: a smaller standard deviation is raised to it.

    Raises:
        ValueError: there is no value, or one that is not finite.
    """
    numbers = np.asarray(values, dtype=float)
    if not numbers.size or not np.isfinite(numbers).all():
        raise ValueError(f"needs at least one number, all of them finite: {numbers.tolist()}")
    runs = numbers.shape[-1]
    away = numbers - numbers[..., :1]  # so that equal values are exactly equal to their mean
    mean = numbers[..., 0] + away.mean(axis=-1)
    if runs == 1:
        return Sample(1, mean, np.full_like(mean, math.nan))
    return Sample(runs, mean, np.maximum(away.var(axis=-1, ddof=1), least_spread**2))


def welch(first: Sample, second: Sample) -> Estimate | None:
    """Welch's t, second minus first; None if an arm has one run or there is no spread."""
    ours, theirs = first.variance / first.runs, second.variance / second.runs
    if not np.all(ours + theirs > 0):  # nor is NaN
        return None
    df = degrees_of_freedom(ours / (ours + theirs), first.runs, second.runs)
    return Estimate(second.mean - first.mean, np.sqrt(ours + theirs), df)


def critical_t(tail: float, df: Any) -> Any:
    """The value that Student's t exceeds with the probability `tail`. `scipy.stats.t.isf` is the
    same function behind checks that take 40 times as long."""
    return -stdtrit(df, tail)


def degrees_of_freedom(share: Any, first: int, second: int) -> Any:
    """The degrees of freedom of Welch's t (Welch 1947), bounded if the arms differ in runs.

    `share` is the first arm's part of the squared standard error; `first` and `second` count runs.

    With n the smaller and N the larger count, and v the degrees of freedom of Welch and
    Satterthwaite, it is (n - 1) (1 + g^2/2 n/N) with g = min(1, v/(n - 1) - 1). v itself trusts a
    noisy arm that happens to look quiet; n - 1 is safe for any ratio of the spreads (Mickey and
    Brown 1966). The formula between them is ours: docs/statistics.md has its error rates.
    """
    fewer, more = sorted((first, second))
    welch_satterthwaite = 1 / (share**2 / (first - 1) + (1 - share) ** 2 / (second - 1))
    gain = np.minimum(welch_satterthwaite / (fewer - 1) - 1, 1)
    return (fewer - 1) * (1 + gain**2 / 2 * fewer / more)


def paired(first: Sequence[float], second: Sequence[float]) -> Interval:
    """Mean of second - first over the items that both checkpoints answered, with Student's t.

    It describes this pair of checkpoints on items like these. It excludes training noise: another
    seed of either arm may lie outside, so it says nothing about the arms.

    Raises:
        ValueError: the lists differ in length, are empty, or hold a number that is not finite.
    """
    found = over_items(first, second)
    mean = float(found.mean)
    if not found.error > 0:  # nor is NaN
        return Interval(mean, None)
    low, high = found.interval(0.95)
    return Interval(mean, (float(low), float(high)))


def over_items(first: Sequence[float], second: Sequence[float]) -> Estimate:
    """Mean of second - first over items, as `paired`; the error is NaN for one item.

    Raises:
        ValueError: as `paired`.
    """
    items = sample([b - a for a, b in zip(first, second, strict=True)])
    return Estimate(items.mean, math.sqrt(items.variance / items.runs), items.runs - 1)


def ratio(first: Sequence[float], second: Sequence[float]) -> Interval:
    """The ratio of the geometric means, second over first, one positive number per run. The 95 %
    interval is Welch's for the difference of the logarithms.

    Raises:
        ValueError: an arm has no run, or a number that is not positive and finite.
    """
    if not all(value > 0 for value in (*first, *second)):
        raise ValueError(f"needs positive numbers: {[*first, *second]}")
    one, two = (sample([math.log(value) for value in values]) for values in (first, second))
    found = welch(one, two)
    if found is None:
        return Interval(math.exp(two.mean - one.mean), None)
    low, high = (math.exp(bound) for bound in found.interval(0.95))
    return Interval(math.exp(found.mean), (low, high))
