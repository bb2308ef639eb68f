"""[tune] of a study file: the learning rates that every arm is tried at, with which seeds.

    [tune]
    lr = 2e-3                       # five rates around it, or a list; default: the recipe's rate
    seeds = [100, 101, 102]

The grid grows by itself while an arm's best rate may lie beyond it (see `rate_search`). [sweep] is
the older table: its rates may be far apart, one seed is enough, and they are all that is tried.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from smolctl.analysis.learning_rates import stepped
from smolctl.studies.arm_plan import ArmPlan
from smolctl.studies.study_keys import refuse_unknown_keys, whole_numbers
from smollm2.errors import UserError
from smollm2.model.config import typed
from smollm2.protocol.resolve import resolve_recipe

COARSEST = 1.5  # between neighbours of [tune]: sqrt 2, and rates that were rounded by hand
ON_EITHER_SIDE = 2  # of a single rate
FEWEST_SEEDS = 3
LEAST, MOST = 1e-12, 1e3  # of a rate, far beyond any that is used


@dataclass(frozen=True)
class Tuning:
    """Learning rates to try, with seeds that no final run has; the best on validation is used.

    Args:
        grows: whether the grid grows at its edges, as that of [tune] does and that of [sweep]
            does not.
    """

    lr: tuple[float, ...]
    seeds: tuple[int, ...]
    grows: bool

    @property
    def table(self) -> str:
        """Its table in a study file."""
        return "tune" if self.grows else "sweep"

    @property
    def keys(self) -> dict[str, Any]:
        """The keys of that table."""
        return {"lr": self.lr, "seeds": self.seeds}


def tune_of(values: Mapping[str, Any], plans: tuple[ArmPlan, ...]) -> Tuning:
    """The tuning of [tune].

    Raises:
        UserError: as `checked`, or there are too few seeds, or neighbouring rates are far apart.
    """
    refuse_unknown_keys(values, ["lr", "seeds"], "[tune]")
    seeds = whole_numbers("seeds of [tune]", values.get("seeds", [100, 101, 102]))
    if len(seeds) < FEWEST_SEEDS:
        raise UserError(
            f"[tune] needs at least {FEWEST_SEEDS} seeds, not {len(seeds)}: with fewer, chance "
            "chooses the rate. For example seeds = [100, 101, 102]."
        )
    rates = values.get("lr", resolve_recipe(plans[0].config)[0].lr)
    if not isinstance(rates, list):
        centre = typed("lr of [tune]", rates, float)
        steps = range(-ON_EITHER_SIDE, ON_EITHER_SIDE + 1)
        rates = [stepped(centre, step) for step in steps] if 0 < centre < math.inf else [centre]
    tuning = checked(Tuning(tuple(rates), seeds, grows=True), plans)
    grid = sorted(tuning.lr)
    for lower, upper in pairwise(grid):
        if upper > COARSEST * lower:
            raise UserError(
                f"the rates of [tune] are at most a factor of {COARSEST} apart, and {lower:g} and "
                f"{upper:g} are not: the best may lie between them. Give rates between, or one "
                f"rate for a grid around it: lr = {grid[len(grid) // 2]:g}."
            )
    return Tuning(tuple(grid), seeds, grows=True)


def sweep_of(values: Mapping[str, Any], plans: tuple[ArmPlan, ...]) -> Tuning:
    """The tuning of [sweep].

    Raises:
        UserError: as `checked`.
    """
    refuse_unknown_keys(values, ["lr", "seeds"], "[sweep]")
    rates = values.get("lr")
    seeds = whole_numbers("seeds of [sweep]", values.get("seeds", [100]))
    return checked(Tuning(tuple(rates) if isinstance(rates, list) else (), seeds, False), plans)


def checked(tuning: Tuning, plans: tuple[ArmPlan, ...]) -> Tuning:
    """The tuning, its rates as numbers.

    Raises:
        UserError: a rate is invalid or there are fewer than two, a seed is also one of a final
            run, an arm has a rate already, or its optimizer has another rate too.
    """
    table = f"[{tuning.table}]"
    rates = tuple(typed(f"a rate of {table}", rate, float) for rate in tuning.lr)
    if not all(LEAST < rate < MOST for rate in rates):
        raise UserError(
            f"the rates of {table} are between {LEAST:g} and {MOST:g}, not {list(rates)}."
        )
    if len(rates) < 2:
        raise UserError(f"{table} needs at least two rates: lr = [1e-3, 1.4e-3], for example.")
    if len({f"{rate:g}" for rate in rates}) < len(rates):
        raise UserError(f"two rates of {table} are the same to six digits: {list(rates)}.")
    for plan in plans:
        if common := sorted(set(tuning.seeds) & set(plan.seeds)):
            raise UserError(
                f"seed {common[0]} is in {table} and in arm {plan.name!r}: the rate would be "
                f"chosen on a run that is compared; give {table} other seeds."
            )
        if plan.config.lr is not None or "lr" in plan.set_fields:
            raise UserError(
                f"give either lr or {table}: the latter chooses the learning rate of each arm."
            )
        recipe, _ = resolve_recipe(plan.config)
        if others := [rate for rate in recipe.rates if rate != "lr"]:
            raise UserError(
                f"{table} tunes lr only, and arm {plan.name!r} ({recipe.optimizer}) also trains at "
                f'{", ".join(others)}; tune with optimizer = "adamw", or remove {table}.'
            )
    return Tuning(rates, tuning.seeds, tuning.grows)
