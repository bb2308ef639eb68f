"""Learning rates of one size from those of another, and whether that is right.

The rule: from the smallest size to the one that checks it, the peak rate is proportional to
1 / d_model, rounded to a grid; at other sizes it is a power of the size through these two. It is
that of muP for the hidden matrices under Adam (Yang et al. 2022, arXiv:2203.03466, table 3). The
initial weights here are scaled by 1 / sqrt(d_model), as there. The embedding's rate, which muP
keeps, is scaled too, and depth and the number of steps change as well, which the rule ignores: so
it is checked at a size that is tuned.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from smolctl.analysis.learning_rates import (
    FACTOR,
    GridLosses,
    best_rate,
    stepped,
    usable_losses,
)
from smolctl.analysis.stats import SMALLEST_SPREAD, critical_t
from smolctl.analysis.tuning_gap import tuning_gap

# Transferred rates are rounded to whole steps of a grid from here, so that the grid that checks
# them can hold those of all arms.
ANCHOR = 1e-3
SIGNIFICANT = 0.05  # two-sided, of a rate that is worse than the best


def transferred(rate: float, width: int, target_width: int) -> float:
    """The rate at `d_model = target_width` of an arm whose best is `rate` at `width`."""
    return stepped(ANCHOR, steps_from_anchor(rate * width / target_width))


def between(rate: float, check_rate: float, reach: float) -> float:
    """The rate at another size: a power of the size through the rates at the two tuned sizes, to
    four digits. So rounding the second one to a grid leaves no size off the line.

    Args:
        reach: as in `transferred_gap`.
    """
    return float(f"{rate * (check_rate / rate) ** reach:.4g}")


def transferred_gap(gap: float, check_gap: float, reach: float) -> float:
    """Upper bound of the tuning gap of a transferred rate at a size without a tuning of its own.

    The best rate is taken to be a power of the size, as the transferred one is (`between`): their
    distance in log rate is a line in log size. Between the two tuned sizes it lies between theirs,
    and in a convex valley so does the gap. Beyond them the valley has to be a parabola: the square
    root of a gap is then the distance, up to a factor that all sizes share. The sides of the tuned
    rates are not known, and the worse ones count.

    Args:
        gap, check_gap: the bounds at the smallest size and at the one that checks the rule.
        reach: log size from the smallest one, in units of its distance to the check.
    """
    if reach <= 1:
        return max(gap, check_gap)
    return (reach * math.sqrt(check_gap) + (reach - 1) * math.sqrt(gap)) ** 2


def steps_from_anchor(rate: float) -> int:
    """How many steps of a grid a rate is away from the anchor, rounded."""
    return round(math.log(rate / ANCHOR, FACTOR))


def rates_around(rates: Sequence[float], margin: int) -> tuple[float, ...]:
    """The rates of the grid from `margin` below the smallest of `rates`, which are on it, to as
    many above the largest."""
    low, high = steps_from_anchor(min(rates)), steps_from_anchor(max(rates))
    return tuple(stepped(ANCHOR, steps) for steps in range(low - margin, high + margin + 1))


@dataclass(frozen=True)
class RateCheck:
    """A transferred rate beside the tuning of an arm at the size where it is checked.

    Attributes:
        rate: by the rule; `tuned` the best of the grid, None if there is none.
        best: the range of the rates that may be the best; see `range_of_best`.
        gap: upper bound of what a better rate could gain, in nats/token; see `tuning_gap`.
    """

    rate: float
    tuned: float | None
    best: tuple[float, float]
    gap: float

    @property
    def holds(self) -> bool:
        """Whether the transferred rate is among the best rates."""
        return self.best[0] <= self.rate <= self.best[1]


def check_rate(grid: GridLosses, rate: float) -> RateCheck:
    """The check of a transferred rate by the grid of a tuning."""
    return RateCheck(rate, best_rate(grid), range_of_best(grid), tuning_gap(grid, rate))


def range_of_best(grid: GridLosses) -> tuple[float, float]:
    """The range of the rates that may be the best: from half-way below the smallest rate that is
    not significantly worse than the best, geometrically, to half-way above the largest.

    A rate is worse if the mean difference within seeds is more than t standard errors from zero,
    the residual variance pooled over the grid. The range is empty, (1, 0), without a usable rate.
    """
    rates, usable = sorted(grid), usable_losses(grid)
    if not usable:
        return 1.0, 0.0
    losses = np.array(list(usable.values()))
    means = losses.mean(axis=1)
    count, seeds = losses.shape
    allowed = 0.0
    if seeds > 1 and count > 1:
        residuals = losses - means[:, None] - losses.mean(axis=0) + losses.mean()
        df = (count - 1) * (seeds - 1)
        spread = max(math.sqrt((residuals**2).sum() / df), SMALLEST_SPREAD)
        allowed = float(critical_t(SIGNIFICANT / 2, df)) * spread * math.sqrt(2 / seeds)
    good = [rate for rate, mean in zip(usable, means, strict=True) if mean <= min(means) + allowed]
    low, high = rates.index(good[0]), rates.index(good[-1])
    below, above = rates[max(low - 1, 0)], rates[min(high + 1, len(rates) - 1)]
    return math.sqrt(rates[low] * below), math.sqrt(rates[high] * above)
