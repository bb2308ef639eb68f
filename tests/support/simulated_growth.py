"""Studies whose grid of learning rates grows, where the best rate of an arm may be anywhere."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from support.simulated import SPREAD, Shares, compare, losses, shares

from smolctl.analysis.learning_rates import MOST_ADDED
from smolctl.analysis.tuning_gap import OPEN, gap_bounds, lowest_at_edges

STEP = 0.5  # octaves between rates: a factor of the root of 2
AT_ONCE = 200  # grids, to bound the memory


@dataclass(frozen=True)
class Searches:
    """What the searches of many studies, with one grid for all arms of each, have come to.

    Args:
        found: losses at all rates that a grid could have, (arms, studies, rates, seeds).
        truth: their expected values above the least one, (arms, studies, rates).
        first: index of the lowest rate of each study's grid, (studies,).
        last: and of its highest.
        is_open: whether an edge of the grid is open for an arm, (arms, studies).
    """

    found: Any
    truth: Any
    first: Any
    last: Any
    is_open: Any
    draws: int

    def gaps(self) -> tuple[Any, Any]:
        """The true tuning gaps at the chosen rates, and their upper bounds, (arms, studies)."""
        true = np.empty(self.is_open.shape)
        bound = np.full(self.is_open.shape, np.inf)
        for first, last, at in same_grids(self.first, self.last):
            for arm, found in enumerate(self.found):
                here = found[at, first : last + 1]
                chosen = here.mean(axis=2).argmin(axis=1)
                true[arm, at] = self.truth[arm, at, first + chosen]
                closed = np.flatnonzero(~self.is_open[arm, at])
                for part in np.array_split(closed, len(closed) // AT_ONCE + 1):
                    x = STEP * np.arange(last - first + 1)
                    bound[arm, at[part]] = gap_bounds(x, here[part], chosen[part], draws=self.draws)
        return true, bound


def same_grids(first: Any, last: Any) -> list[tuple[int, int, Any]]:
    """The grids that there are, each with the studies that have it."""
    found = sorted(set(zip(first.tolist(), last.tolist(), strict=True)))
    return [(low, high, np.flatnonzero((first == low) & (last == high))) for low, high in found]


def searches(
    random: np.random.Generator,
    studies: int,
    *,
    arms: int,
    rise: float,
    octaves: float,
    rates: int = 5,
    seeds: int = 3,
    spread: float = SPREAD,
    draws: int = 300,
) -> Searches:
    """Searches by the rule of `grown`. The best rate of the base is near the middle of the grid,
    those of the arms are that many octaves higher.

    Args:
        rise: of the loss at an octave from the best rate, in nats/token; the valley is a parabola.
        draws: of the means; the tool makes 4,000.
    """
    reach = rates // 2 + MOST_ADDED
    x = STEP * np.arange(-reach, reach + 1)
    best = random.uniform(-STEP / 2, STEP / 2, size=(1 + arms, studies, 1))
    best[1:] += octaves
    truth = rise * (x - best) ** 2
    found = truth[..., None] + spread * random.normal(size=(*truth.shape, seeds))
    first = np.full(studies, MOST_ADDED)
    last = first + rates - 1
    is_open = np.empty((1 + arms, studies, 2), bool)
    left = np.arange(studies)
    while len(left):
        for low, high, at in same_grids(first[left], last[left]):
            is_open[:, left[at]] = open_edges_of(found[:, left[at], low : high + 1], draws)
        asked = is_open[:, left].any(axis=0)
        lower, higher = asked[:, 0] & (first[left] > 0), asked[:, 1] & (last[left] < len(x) - 1)
        first[left] -= lower
        last[left] += higher
        left = left[lower | higher]
    return Searches(found, truth, first, last, is_open.any(axis=2), draws)


def open_edges_of(found: Any, draws: int) -> Any:
    """`open_edges` for grids without failed runs, (arms, studies, rates, seeds)."""
    grids = found.reshape(-1, *found.shape[2:])
    best = grids.mean(axis=2).argmin(axis=1)
    is_best = np.stack([best == 0, best == grids.shape[1] - 1], axis=1)
    parts = np.array_split(grids, len(grids) // AT_ONCE + 1)
    share = np.concatenate([lowest_at_edges(part, draws=draws) for part in parts])
    return (is_best | (share > OPEN)).reshape(*found.shape[:2], 2)


def grown_false_verdicts(
    studies: int, *, arms: int, final_seeds: int, state: int = 0, **grid: Any
) -> Shares:
    """Arms as good as the base at their own best rates, each trained at the rate that its grid
    chose."""
    random = np.random.default_rng(state)
    true, bound = searches(random, studies, arms=arms, **grid).gaps()
    base, others = losses(random, studies, arms=arms, seeds=final_seeds, correlation=0.5)
    estimate = compare(base + true[0][:, None], others + true[1:, :, None], True)
    low, high = estimate.interval(1 - 0.05 / arms)
    wrong = (low - bound[1:] > 0) | (high + bound[0] < 0)
    return [shares(wrong, ~wrong)]
