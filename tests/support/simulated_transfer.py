"""Ladders of sizes whose learning rates were tuned at every size, or transferred from the smallest:
false verdicts on what becomes of a difference with size."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from support.simulated import SPREAD, Shares, compare, losses
from support.simulated_ladders import SMALLEST, TRUTHS, is_false, line_of, one_of, rung_of_arm
from support.simulated_tuning import VALLEYS, grids_around

from smolctl.analysis.rate_transfer import transferred_gap
from smolctl.analysis.size_ladder import judged_trend

STEP = 0.5  # octaves between two rates
REACH = 3  # rates of a grid on each side of the rate by the rule


@dataclass(frozen=True)
class Rates:
    """The rates of an arm at a size, in many ladders.

    Args:
        gap: the true tuning gap of the final runs, (studies,).
        bound: its upper bound, (studies,); infinite where the grid's best rate is at an edge.
    """

    gap: Any
    bound: Any


def rates_of_an_arm(
    random: np.random.Generator, studies: int, sizes: Sequence[float], **design: Any
) -> list[Rates]:
    """The rates of an arm at every size.

    Rates are counted in octaves from what the rule makes of the first size's grid. The best one is
    less than a step from its middle there, and drifts away from the rule by `drift` octaves for a
    size twice as large.

    Args:
        design: `drift`; the `valley` and its `rise`, in nats an octave below the best rate;
            `check`, the index of the size that checks the rule, or None if all sizes are tuned.
    """
    drift, check = design["drift"], design["check"]
    grid: dict[str, Any] = {"valley": design["valley"], "rise": design["rise"], "seeds": 3}
    steps = STEP * np.arange(-REACH, REACH + 1)
    start = random.uniform(-STEP, STEP, size=studies)
    best = [start + drift * np.log2(size / sizes[0]) for size in sizes]
    everywhere = np.ones(studies, bool)
    tuned = {
        index: grids_around(random, steps, best[index], **grid)
        for index in (range(len(sizes)) if check is None else (0, check))
    }
    found = {index: Rates(one.gap, one.bounds(everywhere)) for index, one in tuned.items()}
    if check is None:
        return [found[index] for index in range(len(sizes))]
    rule = tuned[0].chosen
    at_check = dataclasses.replace(tuned[check], chosen=rule).bounds(everywhere)
    at_check = np.where(np.isinf(found[check].bound), np.inf, at_check)
    for index in set(range(len(sizes))) - set(found):
        gap = grid["rise"] * VALLEYS[grid["valley"]](steps[rule] - best[index])
        reach = np.log(sizes[index] / sizes[0]) / np.log(sizes[check] / sizes[0])
        bounds = zip(found[0].bound, at_check, strict=True)
        found[index] = Rates(gap, np.array([transferred_gap(*both, reach) for both in bounds]))
    return [found[index] for index in range(len(sizes))]


def false_tuned_trends(
    studies: int,
    truth: str,
    *,
    sizes: int,
    at: float,
    drifts: tuple[float, float],
    final_seeds: int,
    state: int = 11,
    **design: Any,
) -> Shares:
    """Ladders with a false verdict on the arm at the size `at`, and bands there that cover.

    The true differences are those at the best rates. A ladder with an unbounded gap has no verdict;
    its band is not counted.

    Args:
        sizes: how many, each twice the one before.
        drifts: of the base and of the arm; see `rates_of_an_arm`.
    """
    random = np.random.default_rng(state)
    where = [SMALLEST * 2**number for number in range(sizes)]
    true = [SPREAD * TRUTHS[truth](np.log(size)) for size in (*where, at)]
    both = [rates_of_an_arm(random, studies, where, drift=drift, **design) for drift in drifts]
    rungs = []
    for size, shift, mine, its in zip(where, true[:-1], *both, strict=True):
        base, others = losses(random, studies, arms=1, seeds=final_seeds, correlation=0.5)
        arms = others + shift + its.gap[:, None]
        estimate = compare(base + mine.gap[:, None], arms, True)
        rung = rung_of_arm(size, final_seeds, estimate, 0)
        rungs.append(dataclasses.replace(rung, gaps=(mine.bound, its.bound)))
    bounded = np.isfinite([bound for rung in rungs for bound in rung.gaps]).all(axis=0)
    band, first = (line_of(rungs, 1).at(size) for size in (at, SMALLEST))
    covered = (band.low <= true[-1]) & (true[-1] <= band.high)
    excludes = (band.low > 0) | (band.high < 0) | (first.low > 0) | (first.high < 0)
    wrong = np.zeros(studies, bool)
    for study in np.flatnonzero(excludes & bounded):  # the trend of any other is unknown
        line = line_of([one_of(rung, study) for rung in rungs], 1)
        trend = judged_trend(line, at)[0]
        wrong[study] = is_false(trend, line.at(at).side, true)
    return [(float(wrong.mean()), float(covered[bounded].mean()))]
