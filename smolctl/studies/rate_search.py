"""The search for each arm's learning rate: one grid for all arms, which grows while the best rate
of one of them may lie beyond its edge.

It is a pure function of the results so far: a study that is continued, or shared by several
processes, comes to the same grid.
"""

from collections.abc import Callable
from dataclasses import dataclass

from smolctl.analysis.learning_rates import MOST_ADDED, best_rate, stepped
from smolctl.analysis.tuning_gap import open_edges
from smolctl.studies.plan import PlannedRun
from smolctl.studies.rate_grid import Tuning
from smollm2.errors import RunError

Losses = dict[str, dict[float, dict[int, float]]]  # by arm, rate and seed


@dataclass(frozen=True)
class Search:
    """How far a search has come.

    Args:
        runs: every run of the grid so far.
        losses: infinite for a run that diverged; None until every one of `runs` has ended.
    """

    runs: list[PlannedRun]
    losses: Losses | None


def search(
    tuning: Tuning,
    runs_at: Callable[[tuple[float, ...]], list[PlannedRun]],
    loss_of: Callable[[PlannedRun], float | None],
    may_add: Callable[[list[PlannedRun]], bool] = bool,
) -> Search:
    """The search as far as the results decide it.

    Args:
        runs_at: the runs of every arm at the rates of a grid.
        loss_of: the validation loss of a run that has ended; infinite if it diverged.
        may_add: whether the grid may grow by these runs.
    """
    grid = tuning.lr
    while True:
        runs = runs_at(grid)
        losses = losses_of_search(runs, loss_of)
        larger = grid if losses is None else grown(tuning, grid, losses)
        if not may_add([run for run in runs_at(larger) if run.resolved.recipe.lr not in grid]):
            return Search(runs, losses)
        grid = larger


def losses_of_search(
    runs: list[PlannedRun], loss_of: Callable[[PlannedRun], float | None]
) -> Losses | None:
    """The losses of all runs; None unless every run has ended."""
    losses: Losses = {}
    for run in runs:
        if (loss := loss_of(run)) is None:
            return None
        recipe, seed = run.resolved.recipe, run.resolved.seed
        losses.setdefault(run.arm, {}).setdefault(recipe.lr, {})[seed] = loss
    return losses


def grown(tuning: Tuning, grid: tuple[float, ...], losses: Losses) -> tuple[float, ...]:
    """The grid with one more rate at each edge that is open for an arm (`open_edges`); as it is if
    there is no such edge or the search has gone far enough.

    An arm that diverged at the upper edge has its best rate elsewhere, so nothing is tried beyond.
    One that failed everywhere is tried at smaller rates.
    """
    if not tuning.grows:
        return grid
    is_open = [open_edges(by_rate) for by_rate in losses.values()]
    lowest, highest = tuning.lr[0], tuning.lr[-1]
    below, above = grid.index(lowest), len(grid) - 1 - grid.index(highest)
    if any(low for low, _ in is_open) and below < MOST_ADDED:
        grid = (stepped(lowest, -below - 1), *grid)
    if any(high for _, high in is_open) and above < MOST_ADDED:
        grid = (*grid, stepped(highest, above + 1))
    return grid


def chosen_rates(losses: Losses) -> dict[str, float]:
    """The best rate of each arm.

    Raises:
        RunError: every rate of an arm has a run that failed.
    """
    rates = {}
    for arm, by_rate in losses.items():
        rate = best_rate(by_rate)
        if rate is None:
            raise RunError(
                f"Arm {arm!r} failed at every learning rate from {min(by_rate):g} to "
                f"{max(by_rate):g}, so none can be chosen; try smaller rates in a study file of "
                "another name."
            )
        rates[arm] = rate
    return rates
