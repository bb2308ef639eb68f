"""Does a difference between two arms hold at other sizes? A line through the sizes that were tried.

The difference of the test losses is taken to be a + b log N in the size N. Its verdict at a size is
about the difference there and about the slope.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

import numpy as np

from smolctl.analysis.blocks import Numbers
from smolctl.analysis.stats import critical_t

FEWEST_BEYOND = 3  # rungs for a verdict beyond the measured sizes: two always lie on a line


class Trend(StrEnum):
    """What becomes of a difference with size.

    With *band* for the interval of the difference at a size, from the line:

    persists: the band at the size asked about excludes 0, the slope is not significant, and the
        line has that sign at all measured sizes.
    grows: the band there excludes 0, and the slope is significantly away from 0.
    shrinks: the slope is significantly towards 0, from a band that excludes 0 there or, if that
        does not, at the smallest measured size.
    unknown: none of these.

    A sign that no measured size has counts for nothing: a line that crosses 0 beyond the sizes
    shows a difference that shrinks.
    """

    PERSISTS = "persists"
    SHRINKS = "shrinks"
    GROWS = "grows"
    UNKNOWN = "unknown"


class Lack(StrEnum):
    """Why a trend is unknown."""

    SEEDS = "seeds"
    TUNING = "tuning"
    DOCUMENTS = "documents"
    REGIME = "regime"
    SIZES = "sizes"  # too few of them, or some are not finished
    LINE = "line"  # the differences do not lie on one
    WITHDRAWN = "withdrawn"  # a size is superseded


@dataclass(frozen=True)
class Rung:
    """The difference of an arm to the first one at a size; arm minus base, in nats/token.

    Args:
        parameters: the size.
        mean, error, df: the difference over seeds, its standard error and degrees of freedom.
        seeds: of the arm with fewer runs: the weight of the rung.
        gaps: upper bounds of the tuning gaps of the base and the arm.
    """

    parameters: float
    mean: float
    error: float
    df: float
    seeds: int
    gaps: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class Bounded:
    """A number with its interval."""

    mean: float
    low: float
    high: float

    @property
    def side(self) -> int:
        """1 or -1 if the interval is above or below zero, else 0."""
        return int(self.low > 0) - int(self.high < 0)


@dataclass(frozen=True)
class Line:
    """The line of an arm.

    Args:
        level: 1 - confidence of each interval: half of the arm's share of alpha, as its verdict
            looks at two.
    """

    rungs: tuple[Rung, ...]
    level: float

    @property
    def smallest(self) -> float:
        return min(rung.parameters for rung in self.rungs)

    @property
    def largest(self) -> float:
        return max(rung.parameters for rung in self.rungs)

    def at(self, parameters: float, *, gaps: bool = True) -> Bounded:
        """The difference at a size."""
        return combined(self.rungs, self.coefficients(parameters), self.level, gaps=gaps)

    def slope(self, *, gaps: bool = True) -> Bounded:
        """The change of the difference for a size that is e times as large."""
        return combined(self.rungs, self.slope_coefficients, self.level, gaps=gaps)

    def misses(self) -> list[float]:
        """The sizes whose difference is significantly off the line, at `level` for all together."""
        found = []
        for number, rung in enumerate(self.rungs):
            off = -np.array(self.coefficients(rung.parameters))
            off[number] += 1
            if len(self.rungs) > 2 and combined(self.rungs, off, self.level / len(self.rungs)).side:
                found.append(rung.parameters)
        return found

    def coefficients(self, parameters: float) -> Numbers:
        """The weights of the rungs in the line's value at a size; least squares, closed form."""
        weights, _, centre = self.design
        return weights + (math.log(parameters) - centre) * self.slope_coefficients

    @cached_property
    def slope_coefficients(self) -> Numbers:
        weights, x, centre = self.design
        return weights * (x - centre) / (weights * (x - centre) ** 2).sum()

    @cached_property
    def design(self) -> tuple[Numbers, Numbers, float]:
        """The rungs' weights, which sum to 1, their places log N, and the mean place.

        A rung weighs as many seeds as it has. Weights from the estimated standard errors would
        be better if these were known, but trust the rung that happens to look quiet: intervals
        meant to miss 2.5 % then miss up to 6.4 % (docs/statistics.md).
        """
        weights = np.array([rung.seeds for rung in self.rungs], dtype=float)
        weights /= weights.sum()
        x = np.log([rung.parameters for rung in self.rungs])
        return weights, x, float((weights * x).sum())


def combined(
    rungs: Sequence[Rung], coefficients: Numbers, level: float, *, gaps: bool = True
) -> Bounded:
    """A sum of the rungs' differences times coefficients, with its interval.

    The half-width is the root of the sum of squares of the rungs' own, each with Student's t of its
    own degrees of freedom: the coverage is at least 1 - level (Banerjee 1960, Sankhya 22). It is
    widened by what better tuning could move: every rung as far as its gaps allow. The numbers of a
    rung may be arrays, of many ladders.
    """
    mean, square, down, up = 0.0, 0.0, 0.0, 0.0
    for rung, share in zip(rungs, map(float, coefficients), strict=True):
        mean += share * rung.mean
        square += (share * rung.error * critical_t(level / 2, rung.df)) ** 2
        first, second = rung.gaps if gaps else (0.0, 0.0)
        down += share * second if share > 0 else -share * first
        up += share * first if share > 0 else -share * second
    half = square**0.5
    return Bounded(mean, mean - half - down, mean + half + up)


def trend_at(line: Line, parameters: float, *, gaps: bool = True) -> Trend:
    """See `Trend`."""
    there, slope = line.at(parameters, gaps=gaps).side, line.slope(gaps=gaps).side
    nearest = min(max(parameters, line.smallest), line.largest)
    if there * line.at(nearest).mean > 0:
        if slope:
            return Trend.GROWS if slope == there else Trend.SHRINKS
        ends = (line.at(end).mean for end in (line.smallest, line.largest))
        return Trend.PERSISTS if all(there * end > 0 for end in ends) else Trend.UNKNOWN
    first = line.at(line.smallest, gaps=gaps).side
    return Trend.SHRINKS if first and slope == -first else Trend.UNKNOWN


def judged_trend(line: Line, parameters: float) -> tuple[Trend, tuple[Lack, ...]]:
    """The trend at a size, and what is missing if it is unknown."""
    is_beyond = not line.smallest <= parameters <= line.largest
    if is_beyond and len(line.rungs) < FEWEST_BEYOND:
        return Trend.UNKNOWN, (Lack.SIZES,)
    if line.misses():
        return Trend.UNKNOWN, (Lack.LINE,)
    found = trend_at(line, parameters)
    if found is not Trend.UNKNOWN:
        return found, ()
    is_tuning = trend_at(line, parameters, gaps=False) is not Trend.UNKNOWN
    return found, (Lack.TUNING if is_tuning else Lack.SEEDS,)
