"""An arm of a study file: its model, what it has of its own, and its seeds."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smolctl.studies.study_keys import refuse_unknown_keys, strings, whole_numbers
from smollm2.data.splits import require_share
from smollm2.errors import UserError
from smollm2.model.config import checked_fields, settings_of, split_setting, variant
from smollm2.parse import with_underscores
from smollm2.protocol.resolve import resolve_recipe
from smollm2.protocol.run_config import RunConfig, plain_name

MOST_ARMS = 1000


@dataclass(frozen=True)
class ArmPlan:
    """An arm: its configuration, apart from the seeds.

    Args:
        seeds: one for each final run.
        data_seeds: of the order of the data, one for each of `seeds`; None where that of the
            configuration holds, by default the seed itself.
    """

    name: str
    config: RunConfig
    seeds: tuple[int, ...]
    data_seeds: tuple[int, ...] | None = None

    @property
    def orders(self) -> tuple[int, ...]:
        """The seed of the order of the data of each final run: runs that share it are a block."""
        if self.data_seeds is not None:
            return self.data_seeds
        shared = self.config.data_seed
        return tuple(seed if shared is None else shared for seed in self.seeds)

    @property
    def set_fields(self) -> set[str]:
        """The fields of model or recipe that `set` changes."""
        return {split_setting(text)[0] for text in self.config.settings}


def arm_plans(arms: Any, shared: Mapping[str, Any], seeds: tuple[int, ...]) -> tuple[ArmPlan, ...]:
    """The arms of a study file, from a list of variants or a table.

    Args:
        shared: the options of [train].
        seeds: of an arm that names none.

    Raises:
        UserError: there are fewer than two, one is invalid, or two would have the same runs.
    """
    if isinstance(arms, list):
        strings("arms", arms, '["orig", "pow2"]')
        if len(set(arms)) < len(arms):
            raise UserError(f"arms has a duplicate name: {', '.join(arms)}.")
        arms = {variant: {"variant": variant} for variant in arms}
    if not isinstance(arms, dict) or len(arms) < 2:
        raise UserError('a study has at least two arms: arms = ["orig", "pow2"], for example.')
    if len(arms) > MOST_ARMS:
        raise UserError(f"arms has {len(arms):,} names; give at most {MOST_ARMS:,}.")
    for label in arms:
        require_label(label)
    if len({plain_name(label) for label in arms}) < len(arms):
        raise UserError(f"two arms would have runs of the same names: {', '.join(arms)}.")
    plans = tuple(arm_plan(label, spec, shared, seeds) for label, spec in arms.items())
    refuse_twins(plans)
    return plans


def arm_plan(name: str, spec: Any, shared: Mapping[str, Any], seeds: tuple[int, ...]) -> ArmPlan:
    """The arm `name = "pow2"` or `name = { variant = "pow2", lr = 2e-3, seeds = [3, 4] }`.

    With `data_seeds = [0, 1]` its runs have the data of seeds 0 and 1 in their order, and initial
    weights of their own.
    """
    own = with_underscores(spec) if isinstance(spec, dict) else {"variant": spec}
    refuse_unknown_keys(own, ["variant", "set", "lr", "seeds", "data_seeds"], f"arm {name!r}")
    if "seeds" in own:
        seeds = whole_numbers(f"seeds of arm {name!r}", own.pop("seeds"))
    data_seeds = None
    if "data_seeds" in own:
        data_seeds = whole_numbers(f"data_seeds of arm {name!r}", own.pop("data_seeds"))
        if len(data_seeds) != len(seeds):
            raise UserError(
                f"arm {name!r} has {len(seeds)} seeds and {len(data_seeds)} data_seeds: give one "
                "for each seed."
            )
    values = {"variant": name} | dict(shared) | own
    settings = tuple(
        text for values in (shared, own) for text in settings_of(values.get("set", []))
    )
    values.pop("set", None)
    config = RunConfig(**checked_fields(RunConfig, values), settings=settings)
    if config.held_out is not None:
        require_share(config.held_out)
    return ArmPlan(name, config, seeds, data_seeds)


def require_label(label: str) -> None:
    """Raise `UserError` if an arm's label cannot be typed as an argument; a path is not a label."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._:,=-]*", label):
        name, file = plain_name(Path(label).stem) or "mine", label if "/" in label else "mine.toml"
        raise UserError(
            f"{label!r} is not a valid name for an arm; use letters, digits and . _ : , = -. "
            f'To name your own variant: arms.{name} = "{file}".'
        )


def refuse_twins(plans: tuple[ArmPlan, ...]) -> None:
    """Raise `UserError` if two arms would be the same run: same model, recipe and seeds."""
    resolved = []
    for plan in plans:
        recipe, settings = resolve_recipe(plan.config)
        model = variant(plan.config.variant, plan.config.scale, settings)
        resolved.append((plan, (model, recipe)))
    for number, (plan, trained) in enumerate(resolved):
        for other, others in resolved[:number]:
            common = {*zip(plan.seeds, plan.orders, strict=True)} & {
                *zip(other.seeds, other.orders, strict=True)
            }
            if trained == others and common:
                fresh = [max(other.seeds) + 1 + i for i in range(len(plan.seeds))]
                raise UserError(
                    f"arms {other.name!r} and {plan.name!r} are the same model with the same "
                    f"seeds, and so the same runs; give one of them its own seeds: {plan.name} = "
                    f'{{ variant = "{plan.config.variant}", seeds = {fresh}, data_seeds = '
                    f"{list(plan.orders)} }} is a control on the same data."
                )


def share_orders(plans: tuple[ArmPlan, ...]) -> bool:
    """Whether every arm has at least two orders of the data in common with the first."""
    first, *others = (set(plan.orders) for plan in plans)
    return all(len(first & other) >= 2 for other in others)
