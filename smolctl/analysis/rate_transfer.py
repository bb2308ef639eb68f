"""Learning rates of one size from those of another, and whether that is right.

The rule: the peak rate is proportional to 1 / d_model. It is that of muP for the hidden matrices
under Adam (Yang et al. 2022, arXiv:2203.03466, table 3). The initial weights here are scaled by
1 / sqrt(d_model), as there. The embedding's rate, which muP keeps, is scaled too, and depth and the
number of steps change as well, which the rule ignores: so it is checked at a size that is tuned.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from smolctl.analysis.stats import SMALLEST_SPREAD, critical_t
from smolctl.analysis.tuning_gap import Tuning, tuning_gap

# Transferred rates are rounded to 1e-3 times a power of it, so that the grid that checks them can
# hold those of all arms: it is the factor of a grid.
FACTOR = math.sqrt(2)
ANCHOR = 1e-3
DIGITS = 4  # significant
LEVEL = 0.05  # two-sided, at which a rate is worse than the best

Grid = Mapping[float, Mapping[int, float]]  # validation losses by rate and seed


def transferred(rate: float, width: int, target_width: int) -> float:
    """The rate at `d_model = target_width` of an arm whose best is `rate` at `width`."""
    return rate_on_grid(round(math.log(rate * width / target_width / ANCHOR, FACTOR)))


def rate_on_grid(power: int) -> float:
    """The rate of that power of the factor."""
    return float(f"{ANCHOR * FACTOR**power:.{DIGITS}g}")


def rates_around(rates: Sequence[float], margin: int) -> tuple[float, ...]:
    """The rates of the grid from `margin` below the smallest of `rates`, which are on it, to as
    many above the largest."""
    low, high = (round(math.log(end / ANCHOR, FACTOR)) for end in (min(rates), max(rates)))
    return tuple(rate_on_grid(power) for power in range(low - margin, high + margin + 1))


@dataclass(frozen=True)
class RateCheck:
    """A transferred rate beside the tuning of an arm at the size where it is checked.

    Attributes:
        rate: by the rule; `tuned` the best of the grid, None if every rate failed.
        best: the range of the grid's best rates: of those not significantly worse than the best,
            each with half of the way to the next rate, geometrically.
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


def check_rate(grid: Grid, rate: float) -> RateCheck:
    """The check of a transferred rate by the grid of a tuning."""
    found: Tuning = tuning_gap(grid, rate)
    return RateCheck(rate, found.rate, best_rates(grid, found.rate), found.gap)


def best_rates(grid: Grid, best: float | None) -> tuple[float, float]:
    """See `RateCheck.best`. A rate is worse if the mean difference within seeds is more than t
    standard errors from zero, the residual variance pooled over the grid; an empty range, (1, 0),
    without a best rate."""
    rates = sorted(grid)
    seeds = sorted(set.intersection(*(set(one) for one in grid.values()))) if grid else []
    losses = np.array([[grid[rate][seed] for seed in seeds] for rate in rates])
    if best is None or not seeds:
        return 1.0, 0.0
    usable = np.isfinite(losses).all(axis=1)
    kept = losses[usable]
    means = kept.mean(axis=1)
    allowed = 0.0
    if len(seeds) > 1 and len(kept) > 1:
        residuals = kept - means[:, None] - kept.mean(axis=0) + kept.mean()
        df = (len(kept) - 1) * (len(seeds) - 1)
        spread = max(math.sqrt((residuals**2).sum() / df), SMALLEST_SPREAD)
        allowed = float(critical_t(LEVEL / 2, df)) * spread * math.sqrt(2 / len(seeds))
    good = np.flatnonzero(usable)[means <= means.min() + allowed]
    low, high = int(good[0]), int(good[-1])
    below, above = rates[max(low - 1, 0)], rates[min(high + 1, len(rates) - 1)]
    return math.sqrt(rates[low] * below), math.sqrt(rates[high] * above)
