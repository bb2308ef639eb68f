"""Which runs a study consists of, each resolved once.

A run is called ARM-sSEED, in a tuning ARM-lrRATE-sSEED.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from smolctl.studies.rate_grid import Tuning
from smolctl.studies.study_file import Study
from smollm2.data import TokenData
from smollm2.errors import UserError
from smollm2.protocol.resolve import pays_to_compile, resolve
from smollm2.protocol.run_config import (
    ResolvedConfig,
    RunConfig,
    differing,
    plain_name,
)
from smollm2.runs.manifest import Role


@dataclass(frozen=True)
class PlannedRun:
    """A run of a study.

    Args:
        config: as requested; without `lr` in a final run whose tuning has not ended.
        resolved: `config` with every default filled in.
    """

    name: str
    arm: str
    role: Role
    config: RunConfig
    resolved: ResolvedConfig

    def on(self, data: TokenData) -> "PlannedRun":
        """The run on `data`; see `ResolvedConfig.on`."""
        return dataclasses.replace(self, resolved=self.resolved.on(data))

    def at(self, lr: float) -> "PlannedRun":
        """The run at another peak learning rate."""
        recipe = dataclasses.replace(self.resolved.recipe, lr=lr)
        return dataclasses.replace(
            self,
            config=dataclasses.replace(self.config, lr=lr),
            resolved=dataclasses.replace(self.resolved, recipe=recipe),
        )


def horizons(study: Study, step_seconds: Mapping[str, float]) -> dict[str, RunConfig]:
    """The configuration of each arm with its number of steps: every arm gets as much of what
    `study.equal` names as the first one, and is scored on the same text. An arm of fewer steps
    than the longest begins at a later batch, so that a seed ends all arms on the same text.

    Args:
        step_seconds: measured for each arm; read only for equal seconds.

    Raises:
        UserError: an arm differs in more than the model and the learning rate.
    """
    first = study.arms[0].name
    base = resolve(study.arms[0].config)
    if study.arms[0].config.compile is None:
        # Equal seconds: as the steps were timed.
        compiled = study.equal != "seconds" and pays_to_compile(base, study.runs_of_an_arm)
        base = dataclasses.replace(base, compile=compiled)
    configs = {}
    for arm in study.arms:
        steps = base.steps
        if study.equal == "flops":
            steps = round(steps * base.flops_per_step / resolve(arm.config).flops_per_step)
        elif study.equal == "seconds":
            steps = round(steps * step_seconds[first] / step_seconds[arm.name])
        configs[arm.name] = dataclasses.replace(
            arm.config,
            steps=max(1, steps),
            tokens=None,
            flops=None,
            compile=base.compile,  # all arms or none, or some could not be compared
            val_tokens=base.validation_tokens,
            test_tokens=base.test_tokens,
        )
        controlled = resolve(configs[arm.name]).controlled()
        if fields := differing(base.controlled(), controlled):
            raise UserError(
                f"Arm {arm.name!r} differs from {first!r} in more than the model: {fields}."
            )
    longest = max(config.steps or 0 for config in configs.values())
    return {
        name: dataclasses.replace(config, batch_offset=longest - (config.steps or 0) or None)
        for name, config in configs.items()
    }


def tuning_runs(
    tuning: Tuning, rates: tuple[float, ...], study: Study, configs: Mapping[str, RunConfig]
) -> list[PlannedRun]:
    """The runs of a tuning: every model at every one of `rates`, arms interleaved."""
    tuned = set(tuned_by(configs).values())
    return [
        planned(
            f"{plain_name(arm.name)}-lr{rate:g}-s{seed}",
            arm.name,
            Role.SWEEP,
            dataclasses.replace(configs[arm.name], lr=rate, seed=seed),
        )
        for seed in tuning.seeds
        for rate in rates
        for arm in study.arms
        if arm.name in tuned
    ]


def tuned_by(configs: Mapping[str, RunConfig]) -> dict[str, str]:
    """The arm whose tuning gives each arm its learning rate: the first of the same model, recipe
    and steps. A control thus has the rate of the arm that it repeats, and differs in seeds only."""
    first: dict[tuple[Any, ...], str] = {}
    found = {}
    for arm, config in configs.items():
        resolved = resolve(config)
        found[arm] = first.setdefault((resolved.model, resolved.recipe, resolved.steps), arm)
    return found


def final_runs(study: Study, configs: Mapping[str, RunConfig]) -> list[PlannedRun]:
    """The runs that are compared, arms interleaved by seed: a drifting machine favours no arm."""
    rounds = zip_longest(*(zip(arm.seeds, arm.orders, strict=True) for arm in study.arms))
    return [
        planned(
            f"{plain_name(arm.name)}-s{pair[0]}",
            arm.name,
            Role.FINAL,
            with_seeds(configs[arm.name], *pair),
        )
        for pairs in rounds
        for arm, pair in zip(study.arms, pairs, strict=True)
        if pair is not None
    ]


def with_seeds(config: RunConfig, seed: int, order: int) -> RunConfig:
    """The configuration with its seeds; that of the data is named only where it is another one."""
    data_seed = None if order == seed else order
    return dataclasses.replace(config, seed=seed, data_seed=data_seed)


def planned(name: str, arm: str, role: Role, config: RunConfig) -> PlannedRun:
    """The run of a configuration, resolved."""
    return PlannedRun(name, arm, role, config, resolve(config))
