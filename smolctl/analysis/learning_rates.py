"""Learning rates on a grid: how far apart they are, what was measured there, which is the best."""

import math
from collections.abc import Mapping
from statistics import fmean

# Between neighbours of a grid. A loss changes little over a factor of sqrt 2; over 2 it hid 0.029
# nats/token of one arm here.
FACTOR = math.sqrt(2)
MOST_ADDED = 4  # rates, at either edge of a grid that grows: a factor of 4
DIGITS = 4  # significant, of a computed rate

# Validation losses of a tuning in nats/token, by rate and seed; not finite for a run that failed.
GridLosses = Mapping[float, Mapping[int, float]]


def stepped(rate: float, steps: int) -> float:
    """The rate that many factors of the grid away, rounded."""
    return float(f"{rate * FACTOR**steps:.{DIGITS}g}")


def usable_losses(grid: GridLosses) -> dict[float, list[float]]:
    """The losses of each usable rate at the seeds that all rates have, both ascending; empty
    without such seeds. A rate with a failed run is unusable, whatever its seed."""
    seeds = sorted(set.intersection(*map(set, grid.values()))) if grid else []
    return {
        rate: [grid[rate][seed] for seed in seeds]
        for rate in sorted(grid)
        if seeds and all(map(math.isfinite, grid[rate].values()))
    }


def best_rate(grid: GridLosses) -> float | None:
    """The usable rate with the smallest mean loss over the seeds that all rates have; the smaller
    of equals. None if there is none."""
    losses = usable_losses(grid)
    return min(losses, key=lambda rate: (fmean(losses[rate]), rate), default=None)
