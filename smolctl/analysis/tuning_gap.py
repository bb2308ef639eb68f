"""How much lower an arm's loss could be at a better learning rate than its own.

An arm is tried at a grid of rates, every rate with the same seeds. The *tuning gap* is the expected
loss at the rate of the final runs, minus the least expected loss at any rate within the grid.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smolctl.analysis.blocks import Numbers
from smolctl.analysis.learning_rates import GridLosses, best_rate, usable_losses
from smolctl.analysis.stats import SMALLEST_SPREAD

# Of the drawn gaps: the upper bound. With it, the intervals that the bounds widen cover the
# difference at the best rates in at least 95 %, also where the noise at high rates is three times
# that at low ones; 0.9 would not do there (docs/statistics.md).
QUANTILE = 0.95
# Of the drawn means: the share in which the lowest is that of a rate at an edge of the grid, above
# which the best rate may lie beyond. With it some 2 % of equal arms whose best rates are far
# apart are called different; with an edge that is open only while its rate is the best one, some
# 30 % (docs/statistics.md).
OPEN = 0.05
DRAWS = 4000
PARTS = 6  # of the way between two rates, at whose ends the curve is looked at


def tuning_gap(grid: GridLosses, rate: float | None = None) -> float:
    """The upper bound of the tuning gap at the rate of the final runs, in nats/token.

    It is infinite where the grid does not show how low the loss can be: the best rate may lie
    beyond an edge (`open_edges`), the final runs have a rate that is not in the grid or is
    unusable, or there are fewer than two usable rates or two common seeds.

    Args:
        grid: a rate with a failed run is unusable. Seeds that a rate lacks are left aside.
        rate: of the final runs, equal to one of the grid to six digits; default: the best one.
    """
    rates, losses, best = sorted(grid), usable_losses(grid), best_rate(grid)
    kept = list(losses)
    wanted = best if rate is None else rate
    if best is None or wanted is None or any(open_edges(grid)):
        return math.inf
    own = [i for i, one in enumerate(kept) if math.isclose(one, wanted, rel_tol=1e-6)]
    if not own or len(kept) < 2 or len(losses[best]) < 2:
        return math.inf
    bound = gap_bounds(
        np.log(kept),
        np.array([list(losses.values())]),
        np.array(own[:1]),
        failed=failed_beside(np.log(rates), rates.index(kept[0]), rates.index(kept[-1])),
    )
    return float(bound[0])


def open_edges(grid: GridLosses) -> tuple[bool, bool]:
    """Whether the best rate may lie beyond the lower edge of the grid, and beyond the upper one.

    An edge is open if its rate is the best one, or may be by `lowest_at_edges`. A rate that failed
    closes its edge. If all failed, smaller ones may be better.
    """
    rates, losses, best = sorted(grid), usable_losses(grid), best_rate(grid)
    kept = list(losses)
    if best is None:
        return True, False
    maybe = (False, False)
    if len(kept) > 1 and len(losses[best]) > 1:
        below, above = lowest_at_edges(np.array([list(losses.values())]))[0] > OPEN
        maybe = bool(below), bool(above)
    return (
        rates[0] == kept[0] and (maybe[0] or best == kept[0]),
        rates[-1] == kept[-1] and (maybe[1] or best == kept[-1]),
    )


def failed_beside(x: Numbers, first: int, last: int) -> tuple[float, float]:
    """How far from the first and last usable rates the next ones are, which failed; 0 without."""
    below = x[first] - x[first - 1] if first > 0 else 0.0
    above = x[last + 1] - x[last] if last + 1 < len(x) else 0.0
    return float(below), float(above)


def gap_bounds(
    x: Numbers,
    losses: Numbers,
    chosen: NDArray[np.intp],
    *,
    failed: tuple[float, float] = (0.0, 0.0),
    draws: int = DRAWS,
) -> Any:
    """The upper bounds of the gaps of many grids at once, (grids,).

    A seed is a block: what it adds to all rates cancels. The noise of a mean is the residual
    variance of rates and seeds, pooled over the grid. The means are drawn again, the measured ones
    plus noise whose scale is t-like, as the variance is itself estimated. In each draw the gap is
    the loss at the chosen rate less the least one, and the bound is its quantile. The random state
    is fixed, so the bound is a pure function of the losses.

    Args:
        x: logarithms of the rates, ascending, (rates,).
        losses: (grids, rates, seeds), finite.
        chosen: index of the final runs' rate, (grids,).
        failed: see `failed_beside`.
    """
    drawn = drawn_means(losses, draws)
    own = np.take_along_axis(drawn, chosen[:, None, None], axis=2)[..., 0]
    return np.quantile(own - least_of(x, drawn, failed), QUANTILE, axis=1)


def lowest_at_edges(losses: Numbers, *, draws: int = DRAWS) -> Numbers:
    """In which share of the drawn means the first rate is the lowest, and the last, (grids, 2).

    Args:
        losses: (grids, rates, seeds), finite.
    """
    lowest = drawn_means(losses, draws).argmin(axis=2)
    at = np.array([0, losses.shape[1] - 1])
    return np.asarray((lowest[..., None] == at).mean(axis=1))


def drawn_means(losses: Numbers, draws: int) -> Numbers:
    """The means over seeds, drawn again: (grids, draws, rates); see `gap_bounds`."""
    _, rates, seeds = losses.shape
    means = losses.mean(axis=2)
    residuals = losses - means[:, :, None] - losses.mean(axis=1, keepdims=True)
    residuals += means.mean(axis=1)[:, None, None]
    df = (rates - 1) * (seeds - 1)
    variance = np.maximum((residuals**2).sum(axis=(1, 2)) / df, SMALLEST_SPREAD**2)
    random = np.random.default_rng(0)
    noise = random.normal(size=(draws, rates)) / np.sqrt(random.chisquare(df, (draws, 1)) / df)
    return np.asarray(means[:, None] + np.sqrt(variance / seeds)[:, None, None] * noise)


def least_of(x: Numbers, y: Numbers, failed: tuple[float, float]) -> Numbers:
    """The least of each curve through the points (x, y), y of (..., rates), beside its lowest
    point: see `weights_beside`."""
    curves = y.reshape(-1, len(x))
    lowest = curves.argmin(axis=1)
    found = np.empty(len(curves))
    for index in range(len(x)):
        here = lowest == index
        found[here] = (curves[here] @ weights_beside(x, index, failed).T).min(axis=1)
    return found.reshape(y.shape[:-1])


def weights_beside(x: Numbers, lowest: int, failed: tuple[float, float]) -> Numbers:
    """What a curve may be beside its lowest point, as weights of its points: (values, rates).

    Between two rates of the grid it is looked at on every parabola through three neighbours. If the
    third derivative keeps its sign, one of the two parabolas lies above the curve and one below. At
    the end of the grid there is one, so the cubic through four points is looked at too, and so is
    the straight line from the inner neighbour, half-way to the last rate: nothing there shows how
    fast the curve bends. Towards a rate that failed, the line is followed as far as that rate; no
    convex curve falls below it.
    """
    points, n = np.eye(len(x)), len(x)
    rows = [points[lowest]]
    for start in (lowest - 1, lowest):
        if 0 <= start < n - 1:
            between = np.linspace(x[start], x[start + 1], PARTS + 1)[1:-1]
            for stencil in stencils(start, n):
                rows += list(lagrange(x, stencil, between))
    for side, beyond in zip((-1, 1), failed, strict=True):
        inner, outer = lowest - side, lowest + side
        if not 0 <= inner < n or 0 < outer < n - 1:
            continue
        reach = abs(x[outer] - x[lowest]) / 2 if outer in (0, n - 1) else beyond
        ratio = reach / abs(x[inner] - x[lowest])
        rows.append((1 + ratio) * points[lowest] - ratio * points[inner])
    return np.array(rows)


def stencils(start: int, n: int) -> list[range]:
    """The neighbouring points, by index of `n`, whose polynomial stands for the curve between the
    points `start` and `start` + 1."""
    threes = [range(i, i + 3) for i in (start - 1, start) if i >= 0 and i + 3 <= n]
    if len(threes) == 1 and n > 3:
        return [*threes, range(4) if start == 0 else range(n - 4, n)]
    return threes


def lagrange(x: Numbers, stencil: range, at: Numbers) -> Numbers:
    """The weights, (at, x), that give the values at `at` of the polynomial through the points of
    `stencil`."""
    weights = np.zeros((len(at), len(x)))
    for i in stencil:
        factors = [(at - x[k]) / (x[i] - x[k]) for k in stencil if k != i]
        weights[:, i] = np.prod(factors, axis=0)
    return weights
