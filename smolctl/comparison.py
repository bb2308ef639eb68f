"""Finished runs of two or more arms, side by side: what `compare` prints and `report` writes.

The unit is the run. The primary metric is the loss on the test split at the end of training;
everything else is secondary. There is one family of verdicts, on the primary metric of every arm
against the first: whatever is said elsewhere repeats them. Nothing here prints or trains.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean
from typing import TYPE_CHECKING, Any

import pandas as pd

from smolctl.facts import (
    LOSS,
    METRICS,
    SECONDARY,
    TOKENS_PER_SECOND,
    Metric,
    RunFacts,
    siblings,
)
from smolctl.stats import Difference, Interval, differences, ratio
from smolctl.task_scores import TaskDifference, differences_of, task_means, unequal_questions
from smollm2.cost import kv_cache_bytes_per_token

if TYPE_CHECKING:
    from smollm2.protocol import Protocol

# Budgets that differ by less are the same: steps are whole, and a clock is noisier than a count.
SAME_BUDGET = {"tokens": 0.01, "flops": 0.01, "seconds": 0.05}


@dataclass(frozen=True)
class Arm:
    """The runs of one arm, in order of their seeds: one model, trained in one way.

    failed: names of runs whose loss did not stay finite.
    """

    name: str
    runs: tuple[RunFacts, ...]
    failed: tuple[str, ...] = ()

    @property
    def protocol(self) -> "Protocol":
        return self.runs[0].protocol

    @property
    def parameters(self) -> dict[str, int]:
        """total, active and embedding."""
        return dict(self.runs[0].run.manifest["parameters"])

    @property
    def flops_per_token(self) -> float:
        return float(self.runs[0].run.manifest["training_flops_per_token"])

    @property
    def kv_bytes_per_token(self) -> int:
        return kv_cache_bytes_per_token(self.protocol.model)

    @property
    def seeds(self) -> list[int]:
        return [facts.protocol.seed for facts in self.runs]

    @property
    def rates(self) -> tuple[float, ...]:
        return self.protocol.recipe.rates

    def values(self, metric: Metric) -> list[float]:
        return [facts.values[metric.name] for facts in self.runs]

    def mean_of(self, axis: str) -> float:
        """How much of tokens, flops or seconds a run had in all, on average."""
        return fmean(
            {"tokens": run.tokens, "flops": run.flops, "seconds": run.values["seconds"]}[axis]
            for run in self.runs
        )


@dataclass(frozen=True)
class View:
    """The losses of an arm and the first one where both have had the same of `axis`.

    Args:
        axis: `tokens`, `flops` or `seconds`.
        budget: how much, the less of what the two had on average.
        ended: for each of the two, by name, whether its runs ended their schedule there. If so the
            losses are those on the test split; otherwise they are validation losses read off the
            curve before the schedule ended, which may not be compared.
        losses: for each of the two, a number a run.
    """

    arm: str
    axis: str
    budget: float
    ended: dict[str, bool]
    losses: dict[str, list[float]]

    @property
    def is_fair(self) -> bool:
        """Whether both ended there, so that the verdict on the primary metric holds for it."""
        return all(self.ended.values())


@dataclass(frozen=True)
class Comparison:
    """Arms with a common protocol; `left_out` says of each other run why.

    family: the comparison that this one is a part of, whose verdicts it has; None is itself.
    """

    study: str
    arms: tuple[Arm, ...]
    left_out: tuple[str, ...]
    family: "Comparison | None" = field(default=None, repr=False)

    @property
    def base(self) -> Arm:
        return self.arms[0]

    @property
    def others(self) -> tuple[Arm, ...]:
        return self.arms[1:]

    @property
    def runs(self) -> list[RunFacts]:
        """Of all arms."""
        return [facts for arm in self.arms for facts in arm.runs]

    @property
    def scale(self) -> str:
        return self.base.protocol.scale

    @property
    def equal(self) -> str:
        return str(self.base.runs[0].run.manifest["equal"])

    @property
    def has_speed(self) -> bool:
        """Whether the runs can tell of speed: full size, and all on one machine."""
        return self.scale == "full" and len(self.machines) == 1

    @property
    def is_timed(self) -> bool:
        """Whether speeds can be compared: `has_speed`, several arms, and no run too short."""
        return bool(self.others) and bool(self.secondary(TOKENS_PER_SECOND))

    @cached_property
    def speed_ratios(self) -> dict[str, Interval]:
        """Tokens a second of each arm, as a multiple of the first one's; each by itself, and empty
        where speeds cannot be compared."""
        if not self.is_timed:
            return {}
        base = self.base.values(TOKENS_PER_SECOND)
        return {arm.name: ratio(base, arm.values(TOKENS_PER_SECOND)) for arm in self.others}

    @property
    def machines(self) -> list[tuple[str, int]]:
        return sorted({facts.machine for facts in self.runs})

    @cached_property
    def primary(self) -> dict[str, Difference]:
        """Of the final test loss to the first arm: the verdicts, Holm over the arms."""
        if self.family is not None:
            return {arm.name: self.family.primary[arm.name] for arm in self.others}
        base, *others = self.arms
        return differences(base.values(LOSS), {arm.name: arm.values(LOSS) for arm in others})

    def secondary(self, metric: Metric) -> dict[str, Difference]:
        """Of each arm to the first, each by itself: 95 % intervals that carry no verdict. Empty
        where a run has no such number, or it tells of the machine and the runs cannot."""
        columns = {arm.name: arm.values(metric) for arm in self.arms}
        if metric.is_of_machine and not self.has_speed:
            return {}
        if not all(math.isfinite(value) for values in columns.values() for value in values):
            return {}
        base = columns[self.base.name]
        return {
            arm.name: differences(base, {arm.name: columns[arm.name]})[arm.name]
            for arm in self.others
        }

    @cached_property
    def views(self) -> tuple[View, ...]:
        """Every arm beside the first at equal tokens, FLOPs and, where runs can tell, seconds."""
        axes = ("tokens", "flops", *(["seconds"] if self.has_speed else []))
        return tuple(view_of(self.base, arm, axis) for arm in self.others for axis in axes)

    @cached_property
    def tasks(self) -> pd.DataFrame:
        """A row for each task, metric and arm: value (mean over runs), std, count, chance."""
        return task_means(self.arms)

    @cached_property
    def task_differences(self) -> list[TaskDifference | None]:
        """To the first arm, for each row of `tasks`."""
        return differences_of(self.arms, self.tasks)

    @cached_property
    def task_notes(self) -> list[str]:
        """What `tasks` does not show, and which records behind it will not do."""
        problems = [found.problem for found in self.task_differences if found and found.problem]
        return unequal_questions(self.arms, self.study) + list(dict.fromkeys(problems))

    @property
    def notes(self) -> list[str]:
        """What is said of every run that is left out, and of the tasks."""
        return [*self.left_out, *self.task_notes]

    @cached_property
    def sweep(self) -> dict[str, dict[float, list[float]]]:
        """For each arm the validation losses of the study's sweep by learning rate; a run that
        failed is infinite."""
        return sweep_of(self)

    @property
    def is_swept(self) -> bool:
        """Whether every arm has the rate that did best in a sweep with other seeds."""
        return all(
            len(self.sweep.get(arm.name, {})) > 1
            and best_rate(self.sweep[arm.name]) == arm.rates[0]
            for arm in self.arms
        )

    def among(self, names: Sequence[str]) -> "Comparison | None":
        """The first arm beside those of `names`, with the verdicts of the whole; None without."""
        others = tuple(arm for arm in self.others if arm.name in names)
        return Comparison(self.study, (self.base, *others), (), self) if others else None


def view_of(base: Arm, arm: Arm, axis: str) -> View:
    """See `View`."""
    both = (base, arm)
    budget = min(one.mean_of(axis) for one in both)
    ended = {one.name: one.mean_of(axis) <= budget * (1 + SAME_BUDGET[axis]) for one in both}
    losses = {
        one.name: one.values(LOSS)
        if ended[one.name]
        else [read_curve(facts, axis, budget) for facts in one.runs]
        for one in both
    }
    return View(arm.name, axis, budget, ended, losses)


def read_curve(facts: RunFacts, axis: str, budget: float) -> float:
    """The validation loss at `budget`, on the straight line between two validations."""
    import numpy as np

    return float(np.interp(budget, facts.curve[axis], facts.curve["loss"]))


def sweep_of(comparison: Comparison) -> dict[str, dict[float, list[float]]]:
    """See `Comparison.sweep`; runs with another length or with a seed of the final runs are none
    of it."""
    losses: dict[str, dict[float, list[float]]] = {}
    arms = {arm.name: arm for arm in comparison.arms}
    for run in siblings(comparison.base.runs[0].run):
        arm = arms.get(run.arm)
        if run.manifest["role"] != "sweep" or arm is None:
            continue
        protocol = run.protocol
        if protocol.steps != arm.protocol.steps or protocol.seed in arm.seeds:
            continue
        if run.is_finished:
            loss = float(run.table("val")["loss"].iloc[-1])
        elif run.manifest["state"] == "failed":
            loss = math.inf
        else:
            continue
        losses.setdefault(arm.name, {}).setdefault(protocol.recipe.lr, []).append(loss)
    return losses


def best_rate(by_rate: dict[float, list[float]]) -> float:
    """The rate with the smallest mean loss, of equals the smaller."""
    return min(by_rate, key=lambda rate: (fmean(by_rate[rate]), rate))


def to_dict(comparison: Comparison) -> dict[str, Any]:
    """Everything as JSON."""
    found = [(LOSS, comparison.primary)]
    found += [(metric, comparison.secondary(metric)) for metric in SECONDARY]
    return {
        "study": comparison.study,
        "arms": [
            {
                "arm": arm.name,
                "runs": [facts.name for facts in arm.runs],
                "seeds": arm.seeds,
                "failed": list(arm.failed),
                "parameters": arm.parameters,
                "training_flops_per_token": arm.flops_per_token,
                "kv_bytes_per_token": arm.kv_bytes_per_token,
                "tokens": [facts.tokens for facts in arm.runs],
                "flops": [facts.flops for facts in arm.runs],
                "learning_rates": list(arm.rates),
                "metrics": {
                    metric.name: [none_if_nan(value) for value in arm.values(metric)]
                    for metric in METRICS
                },
            }
            for arm in comparison.arms
        ],
        "differences": [
            {"arm": arm, "metric": metric.name, "primary": metric is LOSS}
            | dataclasses.asdict(difference)
            | ({} if metric is LOSS else {"verdict": None, "resolvable": None})
            for metric, by_arm in found
            for arm, difference in by_arm.items()
        ],
        "views": [
            dataclasses.asdict(view) | {"is_fair": view.is_fair} for view in comparison.views
        ],
        "tasks": [
            {str(key): none_if_nan(value) for key, value in row.items()}
            | {"paired": difference and dataclasses.asdict(difference)}
            for row, difference in zip(
                comparison.tasks.to_dict("records"), comparison.task_differences, strict=True
            )
        ],
        "task_notes": comparison.task_notes,
        "left_out": list(comparison.left_out),
    }


def none_if_nan(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value
