"""How many seeds a study takes to find a difference of the test loss, and what it finds with those
it has; pure functions of how much the loss varies between seeds.

The test is Student's t, two-sided: on n differences within seeds (blocked), or on two arms of n
runs each. Its power is the tail of the noncentral t beyond the critical value (Cohen 1988,
*Statistical Power Analysis*, ch. 2), with noncentrality difference / standard error. Several arms
or looks share alpha equally (Bonferroni).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import variance

from smolctl.analysis.arms import Arm
from smolctl.analysis.comparison import Comparison
from smolctl.analysis.run_metrics import LOSS
from smolctl.analysis.study_plan import ALPHA, read_ledger
from smollm2.errors import UserError

POWER = 0.8
FLOOR = 1e-4  # nats/token: a tenth of the smallest spread that was ever measured here
MOST_SEEDS_NEEDED = 10_000
FAR = 30.0  # noncentrality beyond which the normal part of the t no longer matters
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
class Design:
    """What is compared.

    Args:
        blocked: whether arms are compared within seeds.
        arms: beside the first.
        looks: at the results, the last included.
    """

    blocked: bool
    arms: int
    looks: int = 1

    @property
    def level(self) -> float:
        """Of one test of one arm."""
        return ALPHA / (self.arms * self.looks)


def spread_of_differences(losses: Mapping[str, Mapping[int, float]]) -> Spread | None:
    """The spread of the difference to the first arm within a seed, pooled over arms; None if no arm
    shares two seeds with the first.

    Args:
        losses: of each arm by the seed of its data.
    """
    base, *others = losses.values()
    return pooled([[arm[seed] - base[seed] for seed in arm if seed in base] for arm in others])


def pooled(samples: list[list[float]]) -> Spread | None:
    """The pooled standard deviation, at least `FLOOR`; None if no sample has two values."""
    groups = [values for values in samples if len(values) > 1]
    df = sum(len(values) - 1 for values in groups)
    if df == 0:
        return None
    total = sum((len(values) - 1) * variance(values) for values in groups)
    return Spread(max(FLOOR, math.sqrt(total / df)), df)


def losses_by_order(arms: Sequence[Arm]) -> dict[str, dict[int, float]]:
    """The final test losses of each arm by the seed of the data; of two runs with one order, the
    one with the larger seed."""
    return {
        arm.name: {run.protocol.data_seed: run.values[LOSS.name] for run in arm.runs}
        for arm in arms
    }


def require_difference(difference: float) -> None:
    """Raise `UserError` unless a difference to find is positive and finite."""
    if not 0 < difference < math.inf:
        raise UserError(
            f"a difference to find is a positive number of nats/token such as 0.01, not "
            f"{difference:g}.",
            field="detect",
        )


def spread_for(design: Design, arms: Sequence[Arm]) -> Spread:
    """The spread that the test of a design rests on, as the runs of `arms` show it.

    Raises:
        UserError: they do not show it.
    """
    if design.blocked:
        found = spread_of_differences(losses_by_order(arms))
        needed = "two arms that share two seeds"
    else:
        found = pooled([arm.values(LOSS) for arm in arms])
        needed = "two seeds of an arm"
    if found is None:
        raise UserError(f"These runs do not show how much the loss varies: it takes {needed}.")
    return found


def power_with(seeds: int, difference: float, deviation: float, design: Design) -> float:
    """The chance that `seeds` an arm find a true difference of that size, in its direction."""
    from scipy.stats import chi2, nct, t

    df = seeds - 1 if design.blocked else 2 * (seeds - 1)
    error = deviation / math.sqrt(seeds) * (1.0 if design.blocked else math.sqrt(2))
    critical, shift = float(t.isf(design.level / 2, df)), difference / error
    if shift > FAR:
        return float(chi2.cdf(df * (shift / critical) ** 2, df))
    return float(nct.sf(critical, df, shift))


def seeds_needed(difference: float, deviation: float, design: Design) -> int:
    """The smallest number of seeds an arm that finds `difference` with the power `POWER`.

    Raises:
        UserError: it is more than `MOST_SEEDS_NEEDED`.
    """

    def finds(seeds: int) -> bool:
        return power_with(seeds, difference, deviation, design) >= POWER

    high = 2
    while not finds(high):
        high *= 2
        if high > MOST_SEEDS_NEEDED:
            raise UserError(
                f"A difference of {difference:g} takes more than {MOST_SEEDS_NEEDED:,} seeds an "
                f"arm where the loss varies by {deviation:.2g}; ask for a larger one."
            )
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if finds(middle) else (middle, high)
    return high


def detectable_with(seeds: int, deviation: float, design: Design) -> float | None:
    """The true difference that `seeds` an arm find with the power `POWER`; None with one seed."""
    from scipy.optimize import brentq

    if seeds < 2:
        return None
    above = deviation
    while power_with(seeds, above, deviation, design) < POWER:
        above *= 2
    return float(brentq(lambda d: power_with(seeds, d, deviation, design) - POWER, 0, above))


def seeds_to_find(comparison: Comparison, difference: float) -> int:
    """The number of seeds an arm that would find `difference` between the arms of a comparison.

    Arms are compared within seeds as the study's ledger says; without one, where every arm shares
    steps and at least two orders of the data with the first.

    Raises:
        UserError: the runs do not show how much the loss varies.
    """
    ledger = read_ledger(comparison.base.runs[0].run.study_path)
    base, *others = (losses.keys() for losses in losses_by_order(comparison.arms).values())
    is_blocked = comparison.equal == "tokens" and all(len(base & arm) > 1 for arm in others)
    design = Design(
        ledger.binding.blocked if ledger else is_blocked,
        len(comparison.others),
        len(ledger.binding.looks) if ledger else 1,
    )
    return seeds_needed(difference, spread_for(design, comparison.arms).deviation, design)
