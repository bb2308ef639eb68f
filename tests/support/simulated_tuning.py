"""Studies whose learning rates were chosen by a grid with noise."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from support.simulated import FAMILIES, SPREAD, Shares, compare, losses, shares

from smolctl.analysis.tuning_gap import gap_bounds

# Expected loss above its least one, against the logarithm of the rate to base 2.
VALLEYS = {
    "parabola": lambda x: x**2,
    "steep": lambda x: np.where(x < 0, x**2, 4 * x**2),
    "exponential": lambda x: (np.exp(2 * x) - 1 - 2 * x) / (np.exp(-2) + 1),
    "cliff": lambda x: np.where(x < 0.3, x**2, 0.09 + 30 * (x - 0.3)),
}


@dataclass(frozen=True)
class Grids:
    """The grids of an arm, one a study.

    Args:
        x: logarithms of the rates, (rates,).
        found: the losses, (studies, rates, seeds).
        chosen: index of the rate of the final runs, (studies,).
        gap: the true tuning gap there, (studies,).
    """

    x: Any
    found: Any
    chosen: Any
    gap: Any
    draws: int

    def bounds(self, where: Any) -> Any:
        """The upper bounds of the gaps, (studies,); 0 but for the studies `where`."""
        bound = np.zeros(len(self.found))
        at = np.flatnonzero(where)
        for part in np.array_split(at, len(at) // 200 + 1):  # to bound the memory
            found, chosen = self.found[part], self.chosen[part]
            bound[part] = gap_bounds(self.x, found, chosen, draws=self.draws)
        is_edge = (self.chosen == 0) | (self.chosen == len(self.x) - 1)
        return np.where(is_edge & where, np.inf, bound)


def grids(
    random: np.random.Generator,
    studies: int,
    valley: str,
    *,
    factor: float,
    rise: float,
    rates: int,
    seeds: int,
    noise_above: float = 1,
    draws: int = 300,
) -> Grids:
    """Grids whose best rate is anywhere between the second and the last but one.

    Args:
        noise_above: the spread at rates above the best one, in units of SPREAD.
        draws: of a bound; the tool makes 4,000.
    """
    step = math.log2(factor)
    x = step * np.arange(rates)
    best = step * random.uniform(0.5, rates - 1.5, size=studies)
    shape: dict[str, Any] = {"rise": rise, "noise_above": noise_above}
    return grids_around(random, x, best, valley, seeds=seeds, draws=draws, **shape)


def grids_around(
    random: np.random.Generator,
    x: Any,
    best: Any,
    valley: str,
    *,
    rise: float,
    seeds: int,
    noise_above: float = 1,
    draws: int = 300,
) -> Grids:
    """Grids of the rates `x` of arms whose best ones are `best`, (studies,); see `grids`."""
    off = x - best[:, None]
    truth = rise * VALLEYS[valley](off)
    spread = SPREAD * np.where(off > 0, noise_above, 1)
    noise = random.normal(size=(*off.shape, seeds))
    found = truth[:, :, None] + spread[:, :, None] * noise
    chosen = found.mean(axis=2).argmin(axis=1)
    return Grids(x, found, chosen, truth[np.arange(len(best)), chosen], draws)


def tuned(
    studies: int,
    valley: str,
    *,
    final_seeds: int,
    families: Sequence[int] = FAMILIES,
    state: int = 0,
    **grid: Any,
) -> tuple[Shares, Shares]:
    """Arms as good as the base at their own best rates, each trained at the rate its grid chose:
    the shares of the rule, and those of one that ignores tuning.

    The true difference at the best rates is 0. As a widened interval excludes it only where the one
    that is not widened does, at the lowest confidence, bounds are computed there only.
    """
    random = np.random.default_rng(state)
    base, others = losses(random, studies, arms=max(families), seeds=final_seeds, correlation=0.5)
    first, *rest = (grids(random, studies, valley, **grid) for _ in range(1 + len(others)))
    gaps = np.array([one.gap for one in rest])
    estimate = compare(base + first.gap[:, None], others + gaps[:, :, None], True)
    low, high = estimate.interval(1 - 0.05 / min(families))
    of_base = first.bounds((high < 0).any(axis=0))
    of_arms = np.array([one.bounds(where) for one, where in zip(rest, low > 0, strict=True)])
    ours, naive = [], []
    for arms in families:
        low, high = (one[:arms] for one in estimate.interval(1 - 0.05 / arms))
        wrong = (low - of_arms[:arms] > 0) | (high + of_base < 0)
        ours.append(shares(wrong, ~wrong))
        wrong = (low > 0) | (high < 0)
        naive.append(shares(wrong, ~wrong))
    return ours, naive


def tuned_false_verdicts(studies: int, valley: str, **design: Any) -> Shares:
    return tuned(studies, valley, **design)[0]
