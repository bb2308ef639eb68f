"""How many seeds a study takes to find a difference of the test loss, and what it finds with those
it has, by how much the loss varied between the seeds of earlier runs; see `power`."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import variance

from smolctl.analysis.alike import is_control
from smolctl.analysis.arms import Arm
from smolctl.analysis.comparison import Comparison
from smolctl.analysis.power import MOST_SEEDS, found_by, seeds_for
from smolctl.analysis.run_metrics import LOSS
from smolctl.analysis.stats import SMALLEST_SPREAD
from smolctl.analysis.study_verdicts import blocks_by_seed, design_of
from smollm2.errors import UserError

TUNING_SEEDS = (3, 4, 5, 6, 8, 10, 12, 16, 20, 30, 50, 100)  # that are tried
UNSURE = 0.1  # tail of the spread's distribution at which its upper end is taken


@dataclass(frozen=True)
class Spread:
    """A standard deviation over seeds, in nats/token, estimated with `df` degrees of freedom."""

    deviation: float
    df: int

    @property
    def upper(self) -> float:
        """What the true one exceeds in one of ten cases, if runs are roughly Gaussian."""
        from scipy.stats import chi2

        return float(self.deviation * math.sqrt(self.df / chi2.ppf(UNSURE, self.df)))


@dataclass(frozen=True)
class Family:
    """What is compared with the first arm.

    Args:
        blocked: whether arms are compared within seeds.
        arms: beside the first.
        looks: at the results, the last included.
    """

    blocked: bool
    arms: int
    looks: int = 1


def spread_of_differences(losses: Mapping[str, Mapping[int, float]]) -> Spread | None:
    """The spread of the difference to the first arm within a seed, pooled over arms; None if no arm
    shares two seeds with the first.

    Args:
        losses: of each arm by the seed of its data.
    """
    base, *others = losses.values()
    return pooled([[arm[seed] - base[seed] for seed in arm if seed in base] for arm in others])


def pooled(samples: list[list[float]]) -> Spread | None:
    """The pooled standard deviation, raised to `SMALLEST_SPREAD`; None if no sample has two
    values."""
    groups = [values for values in samples if len(values) > 1]
    df = sum(len(values) - 1 for values in groups)
    if df == 0:
        return None
    total = sum((len(values) - 1) * variance(values) for values in groups)
    return Spread(max(SMALLEST_SPREAD, math.sqrt(total / df)), df)


def losses_by_block(arms: Sequence[Arm]) -> dict[str, dict[int, float]]:
    """The final test losses of each arm by block."""
    found = {}
    for arm in arms:
        blocks = blocks_by_seed(arm)
        found[arm.name] = {blocks[run.protocol.seed]: run.values[LOSS.name] for run in arm.runs}
    return found


def require_difference(difference: float) -> None:
    """Raise `UserError` unless a difference to find is positive and finite."""
    if not 0 < difference < math.inf:
        raise UserError(
            f"a difference to find is a positive number of nats/token such as 0.01, not "
            f"{difference:g}.",
            field="detect",
        )


def spread_for(family: Family, arms: Sequence[Arm]) -> Spread:
    """The spread that the test of a family rests on, as the runs of `arms` show it.

    A control says nothing about it if there are other arms: with the data of the first arm and its
    model it often differs less.

    Raises:
        UserError: they do not show it.
    """
    if family.blocked:
        base, *others = arms
        models = [arm for arm in others if not is_control(base, arm)]
        found = spread_of_differences(losses_by_block([base, *(models or others)]))
        needed = "two arms that share two seeds"
    else:
        found = pooled([arm.values(LOSS) for arm in arms])
        needed = "two seeds of an arm"
    if found is None:
        raise UserError(f"These runs do not show how much the loss varies: it takes {needed}.")
    return found


def seeds_needed(difference: float, deviation: float, family: Family) -> int:
    """The smallest number of seeds an arm that finds `difference` with 80 % power.

    Raises:
        UserError: it is more than `MOST_SEEDS`.
    """
    seeds = seeds_or_none(difference, deviation, family)
    if seeds is None:
        raise UserError(
            f"A difference of {difference:g} takes more than {MOST_SEEDS:,} seeds an arm where the "
            f"loss varies by {deviation:.2g}; ask for a larger one.",
            field="detect",
        )
    return seeds


def seeds_or_none(difference: float, deviation: float, family: Family) -> int | None:
    """`seeds_needed`; None if it is more than `MOST_SEEDS`."""
    try:
        return seeds_for(
            *(difference, deviation),
            blocked=family.blocked,
            arms=family.arms,
            looks=family.looks,
        )
    except ValueError:
        return None


def detectable_with(seeds: int, deviation: float, family: Family) -> float | None:
    """The true difference that `seeds` an arm find with 80 % power; None with one seed."""
    if seeds < 2:
        return None
    return found_by(
        *(seeds, deviation), blocked=family.blocked, arms=family.arms, looks=family.looks
    )


def tuning_cost(seeds: int, deviation: float, family: Family) -> float:
    """What the tuning adds to the difference that is found with 80 % power, in nats/token. A
    verdict allows for what other rates could gain: the less, the more seeds every rate has.

    4.26 times the spread of a run within its seed, divided by seeds^0.75: fitted to simulations of
    the whole rule, and within 0 to 12 % above them for 3 to 20 seeds of the tuning (five rates √2
    apart, a rise of 0.03 nats/token an octave from the best, a spread of 0.01) and 5 to 80 final
    seeds. tests/analysis/test_planned_tuning.py repeats some.

    Args:
        seeds: of the tuning.
        deviation: as in `seeds_needed`.
    """
    within = deviation / math.sqrt(2) if family.blocked else deviation
    return 4.26 * within / seeds**0.75


def seeds_with_tuning(
    difference: float, deviation: float, family: Family, rates: float
) -> tuple[int, int]:
    """How many final seeds an arm, and how many of the tuning, find `difference` with 80 % power in
    the fewest runs.

    Args:
        rates: that an arm is tried at; fewer than that of the grid where arms share their tuning.

    Raises:
        UserError: none of `TUNING_SEEDS` does.
    """
    found = []
    for tuning in TUNING_SEEDS:
        left = difference - tuning_cost(tuning, deviation, family)
        seeds = seeds_or_none(left, deviation, family) if left > 0 else None
        if seeds is not None:
            found.append((seeds + rates * tuning, seeds, tuning))
    if not found:
        raise UserError(
            f"A difference of {difference:g} takes more than {TUNING_SEEDS[-1]} seeds of [tune] or "
            f"more than {MOST_SEEDS:,} seeds an arm where the loss varies by {deviation:.2g}; ask "
            "for a larger one.",
            field="detect",
        )
    _, seeds, tuning = min(found)
    return seeds, tuning


def seeds_to_find(comparison: Comparison, difference: float) -> tuple[int, int | None]:
    """The numbers of seeds an arm, and of the tuning if all arms have one, that would find
    `difference` between the arms of a comparison, judged as the study's plan says, or as its arms
    allow if it has none.

    Raises:
        UserError: the runs do not show how much the loss varies.
    """
    plan = comparison.ledger.binding if comparison.ledger else None
    design = design_of(comparison.arms, plan, comparison.margin)
    family = Family(design.blocked, design.comparisons, max(1, len(design.looks)))
    deviation = spread_for(family, comparison.arms).deviation
    grids = comparison.grids
    if any(arm.name not in grids for arm in comparison.arms):
        return seeds_needed(difference, deviation, family), None
    return seeds_with_tuning(difference, deviation, family, len(grids[comparison.base.name]))
