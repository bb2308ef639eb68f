"""Finished runs of two or more arms, side by side: what `compare` prints and `report` writes.

The unit is the run. The primary metric is the loss on the test split at the end of training;
everything else is secondary. There is one family of verdicts: the primary metric of every arm
against the first.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from smolctl.analysis.arms import Arm
from smolctl.analysis.document_differences import document_difference
from smolctl.analysis.document_interval import DocumentIntervals
from smolctl.analysis.learning_rates import GridLosses, best_rate
from smolctl.analysis.run_metrics import (
    LOSS,
    FinishedRun,
    Metric,
    siblings,
    tuning_loss,
)
from smolctl.analysis.speed_ratios import Speeds, measured_speeds, own_speeds
from smolctl.analysis.study_plan import Ledger, read_ledger
from smolctl.analysis.study_verdicts import family_verdicts, values_by_block
from smolctl.analysis.task_rows import Row
from smolctl.analysis.task_scores import (
    TaskDifference,
    differences_of,
    task_means,
    unequal_questions,
)
from smolctl.analysis.verdicts import (
    Difference,
    difference_over_seeds,
    withdrawn_difference,
    without_interval,
)
from smollm2.protocol.run_config import ResolvedConfig
from smollm2.runs.manifest import Role
from smollm2.runs.run import Run

# Budgets that differ by a smaller share count as equal: steps are whole, and clocks are noisy.
SAME_BUDGET = {"tokens": 0.01, "flops": 0.01, "seconds": 0.05}


@dataclass(frozen=True)
class View:
    """The losses of an arm and the first one after an equal amount of `axis`.

    Args:
        axis: `tokens`, `flops` or `seconds`.
        budget: the amount: the smaller of the two arms' means.
        ended: for each of the two, by name, whether its runs ended their schedule there.
        losses: for each of the two, by name, one loss per run: on the test split if both ended
            there. Otherwise validation losses of both, read off their curves, which must not be
            compared: a schedule had not ended.
    """

    arm: str
    axis: str
    budget: float
    ended: dict[str, bool]
    losses: dict[str, list[float]]

    @property
    def is_fair(self) -> bool:
        """Whether both ended there, so the verdict on the primary metric applies."""
        return all(self.ended.values())

    @property
    def split(self) -> str:
        """Whose the losses are: `test` or `validation`."""
        return "test" if self.is_fair else "validation"


@dataclass(frozen=True)
class Comparison:
    """Arms with a common protocol.

    Args:
        excluded: a sentence per excluded run, with the reason, and on each plan or floor that
            does not fit the runs.
        whole: the comparison that this one is a part of and takes its verdicts from; None if it
            is no part.
        superseded: why the study's verdicts no longer hold; None if they do.
        margin: a difference of the loss within it, in nats/token, does not matter; None if the
            study names none.
    """

    study: str
    arms: tuple[Arm, ...]
    excluded: tuple[str, ...]
    whole: "Comparison | None" = field(default=None, repr=False)
    superseded: str | None = None
    margin: float | None = None

    @property
    def base(self) -> Arm:
        return self.arms[0]

    @property
    def others(self) -> tuple[Arm, ...]:
        return self.arms[1:]

    @property
    def runs(self) -> list[FinishedRun]:
        """The runs of all arms."""
        return [finished for arm in self.arms for finished in arm.runs]

    @property
    def scale(self) -> str:
        return self.base.protocol.scale

    @property
    def equal(self) -> str:
        return str(self.base.runs[0].run.manifest["equal"])

    @property
    def has_speed(self) -> bool:
        """Whether the runs measure speed: full size, each alone and in one process, and all on one
        machine."""
        runs = [finished.run for finished in self.runs]
        is_alone = all(run.at_once == 1 and run.processes == [1] for run in runs)
        return self.scale == "full" and len(self.machines) == 1 and is_alone

    @cached_property
    def speeds(self) -> Speeds | None:
        """How fast the arms train: measured in turns, where the study has that of every arm, at any
        scale; else by the runs' own clocks, if `has_speed`. None if there is neither, a run is too
        short, or there is one arm.

        Raises:
            UserError: the study's speed.csv is damaged or of other models.
        """
        return measured_speeds(self.arms) or (own_speeds(self.arms) if self.has_speed else None)

    @property
    def is_timed(self) -> bool:
        """Whether speeds can be compared."""
        return self.speeds is not None

    @property
    def machines(self) -> list[tuple[str, int]]:
        return sorted({finished.machine for finished in self.runs})

    @cached_property
    def ledger(self) -> Ledger | None:
        """What the study planned; None for a study without a ledger.

        Raises:
            UserError: as `read_ledger`.
        """
        return read_ledger(self.base.runs[0].run.study_path)

    @cached_property
    def primary(self) -> dict[str, Difference]:
        """The verdicts: each arm's final test loss against the first arm's; see `judge`, and of a
        superseded study `withdrawn_difference`."""
        if self.whole is not None:
            return {arm.name: self.whole.primary[arm.name] for arm in self.others}
        found = family_verdicts(self.arms, self.grids, self.ledger, self.margin)
        if self.superseded is None:
            return found
        return {arm: withdrawn_difference(one) for arm, one in found.items()}

    @cached_property
    def over_documents(self) -> dict[str, DocumentIntervals]:
        """The differences over documents, of the arms whose runs have sums of each document; empty
        for a superseded study."""
        if self.superseded is not None:
            return {}
        found = {}
        for arm in self.others:
            judged = self.primary[arm.name]
            found[arm.name] = document_difference(
                self.base, arm, blocked=judged.paired, confidence=judged.confidence
            )
        return {arm: one for arm, one in found.items() if one is not None}

    def secondary(self, metric: Metric) -> dict[str, Difference]:
        """Each arm against the first as the runs are: compared like the loss, with an interval over
        seeds alone that carries no verdict; without one for the loss in another unit. Empty if a
        run lacks the metric, if it depends on the machine and not `has_speed`, or for a superseded
        study."""
        columns = {arm.name: arm.values(metric) for arm in self.arms}
        if self.superseded is not None or (metric.is_of_machine and not self.has_speed):
            return {}
        if not all(math.isfinite(value) for values in columns.values() for value in values):
            return {}
        found, base = {}, values_by_block(self.base, metric)
        for arm in self.others:
            judged = self.primary[arm.name]
            one = difference_over_seeds(
                base,
                values_by_block(arm, metric),
                paired=judged.paired and not metric.is_of_machine,
                confidence=judged.confidence,
            )
            found[arm.name] = without_interval(one.mean, one.confidence) if metric.is_loss else one
        return found

    @cached_property
    def views(self) -> tuple[View, ...]:
        """Every arm against the first at equal tokens, FLOPs and, if `has_speed`, seconds."""
        axes = ("tokens", "flops", *(["seconds"] if self.has_speed else []))
        return tuple(view_of(self.base, arm, axis) for arm in self.others for axis in axes)

    @cached_property
    def tasks(self) -> list[Row]:
        """See `task_means`."""
        return task_means(self.arms)

    @cached_property
    def task_differences(self) -> list[TaskDifference | None]:
        """The difference to the first arm, per row of `tasks`."""
        return differences_of(self.arms, self.tasks)

    @cached_property
    def task_notes(self) -> list[str]:
        """Sentences on what `tasks` does not show and on scores that do not match their items."""
        problems = [found.problem for found in self.task_differences if found and found.problem]
        return unequal_questions(self.arms) + list(dict.fromkeys(problems))

    @property
    def notes(self) -> list[str]:
        """Sentences on excluded runs and on tasks."""
        return [*self.excluded, *self.task_notes]

    @cached_property
    def grids(self) -> Mapping[str, GridLosses]:
        """The validation losses of the study's tuning, by arm, learning rate and seed; infinite
        for a run that diverged. Runs of another length, or with a seed of the final runs, do not
        count."""
        return tuning_losses(self)

    @property
    def is_swept(self) -> bool:
        """Whether every arm was trained at the best rate of its grid."""
        return all(
            len(self.grids.get(arm.name, {})) > 1
            and best_rate(self.grids[arm.name]) == arm.rates[0]
            for arm in self.arms
        )

    def among(self, names: Sequence[str]) -> "Comparison | None":
        """The first arm and those of `names`, with the verdicts of the whole comparison; None if
        there are no such arms."""
        others = tuple(arm for arm in self.others if arm.name in names)
        if not others:
            return None
        return Comparison(self.study, (self.base, *others), (), self, self.superseded, self.margin)


def view_of(base: Arm, arm: Arm, axis: str) -> View:
    """See `View`."""
    both = (base, arm)
    budget = min(one.mean_of(axis) for one in both)
    ended = {one.name: one.mean_of(axis) <= budget * (1 + SAME_BUDGET[axis]) for one in both}
    losses = {
        one.name: one.values(LOSS)
        if all(ended.values())
        else [read_curve(finished, axis, budget) for finished in one.runs]
        for one in both
    }
    return View(arm.name, axis, budget, ended, losses)


def read_curve(finished: FinishedRun, axis: str, budget: float) -> float:
    """The validation loss at `budget`, interpolated between two validations."""
    import numpy as np

    return float(np.interp(budget, finished.curve[axis], finished.curve["loss"]))


def tuning_losses(comparison: Comparison) -> Mapping[str, GridLosses]:
    """See `Comparison.grids`."""
    losses: dict[str, dict[float, dict[int, float]]] = {}
    for run in siblings(comparison.base.runs[0].run):
        loss = ended_tuning_loss(run)
        if loss is None:
            continue
        protocol = run.protocol
        for arm in comparison.arms:
            if tunes(protocol, arm):
                of_rate = losses.setdefault(arm.name, {}).setdefault(protocol.recipe.lr, {})
                of_rate[protocol.seed] = loss
    return losses


def ended_tuning_loss(run: Run) -> float | None:
    """The validation loss of a run of the tuning: infinite if it diverged, None if it has not
    ended, failed otherwise or is no such run."""
    if run.role is not Role.SWEEP:
        return None
    if run.is_finished:
        return tuning_loss(run)
    return math.inf if run.has_diverged else None


def tunes(protocol: ResolvedConfig, arm: Arm) -> bool:
    """Whether a run of the tuning shares all but the rate and the seed with an arm. Names do not
    count: a control has the tuning of the arm that it repeats."""
    own = arm.protocol
    at_its_rate = dataclasses.replace(protocol.recipe, lr=own.recipe.lr)
    is_same = (protocol.steps, protocol.model, at_its_rate) == (own.steps, own.model, own.recipe)
    is_same = is_same and protocol.controlled() == own.controlled()
    return is_same and protocol.seed not in arm.seeds
