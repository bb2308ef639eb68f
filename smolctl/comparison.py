"""Finished runs of two or more arms, side by side: what `compare` prints and `report` writes.

The unit is the run. The primary metric is the loss on the test split at the end of training;
everything else is secondary. Nothing here prints or trains.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

import pandas as pd

from smolctl.stats import Difference, Interval, differences, paired
from smollm2.cost import kv_cache_bytes_per_token
from smollm2.errors import UserError

if TYPE_CHECKING:
    from smollm2.protocol import Protocol
    from smollm2.runs import Run

SPLITS = ("test", "validation")
# Scores that agree in these are of the same questions, asked in the same way.
TASK_KEYS = ["task", "metric", "protocol", "n", "total", "fingerprint"]
# Budgets that differ by less are the same: steps are whole, and a clock is noisier than a count.
SAME_BUDGET = {"tokens": 0.01, "flops": 0.01, "seconds": 0.05}


@dataclass(frozen=True)
class Metric:
    """A number of which a run has one, shown with so many digits after the point."""

    name: str
    label: str
    lower_is_better: bool
    digits: int


PRIMARY = Metric("loss", "test loss", True, 4)
SECONDARY = (
    Metric("accuracy", "test accuracy", False, 4),
    Metric("bits_per_byte", "test bits per byte", True, 4),
    Metric("tokens_per_second", "tokens per second", False, 0),
    Metric("seconds", "training seconds", True, 1),
    Metric("peak_memory_mb", "peak memory, MB", True, 0),
)


@dataclass(frozen=True)
class RunFacts:
    """What the files of one finished run say; read and checked once.

    Args:
        values: a number for each metric, by name; NaN where a run is too short to have it.
        curve: val.csv: step, tokens, flops, seconds, loss.
        train: train.csv.
        tasks: rows of eval.csv that are not held-out text.
    """

    run: "Run"
    protocol: "Protocol"
    values: dict[str, float]
    curve: pd.DataFrame
    train: pd.DataFrame
    tasks: pd.DataFrame

    @property
    def name(self) -> str:
        return self.run.name

    @cached_property
    def flops(self) -> float:
        return self.protocol.steps * self.protocol.flops_per_step

    @property
    def tokens(self) -> int:
        return self.protocol.steps * self.protocol.tokens_per_step


def read_facts(run: "Run") -> RunFacts:
    """The facts of a finished run.

    Raises:
        UserError: a table is missing, cut off or lacks a column, or a loss is not a number.
    """
    train, curve, evaluated = (run.table(name) for name in ("train", "val", "eval"))
    for name, table in (("train", train), ("val", curve)):
        if table.empty or not table["loss"].map(math.isfinite).all():
            raise UserError(f"{run.name}/{name}.csv has a loss that is not a number.")
    scores = run.test_scores()
    values = {
        "loss": float(scores["loss"]),
        "accuracy": float(scores["accuracy"]),
        "bits_per_byte": float(scores["bits_per_byte"]),
        "tokens_per_second": float(train["tokens_per_second"].median()),
        "seconds": float(train["seconds"].iloc[-1]),
        "peak_memory_mb": float(train["peak_memory_mb"].max()),
    }
    if not math.isfinite(values["loss"]):
        raise UserError(f"{run.name}/eval.csv has a loss that is not a number.")
    tasks = evaluated[~evaluated["task"].isin(SPLITS)]
    return RunFacts(run, run.protocol, values, curve, train, tasks)


@dataclass(frozen=True)
class Arm:
    """The runs of one arm, in order of their seeds."""

    name: str
    runs: tuple[RunFacts, ...]

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

    def values(self, metric: Metric) -> list[float]:
        return [facts.values[metric.name] for facts in self.runs]


@dataclass(frozen=True)
class View:
    """The arms' losses where each has had the same of `axis`.

    Args:
        axis: `tokens`, `flops` or `seconds`.
        budget: how much, the least that an arm had in all, on average over its runs.
        losses: a number for each run of each arm.
        ended: whether the runs of an arm ended their schedule there. Then the losses are those on
            the test split; otherwise they are validation losses read off the curve before the
            schedule ended, which may not be compared.
        differences: to the first arm, of those arms that ended there as it did.
    """

    axis: str
    budget: float
    losses: dict[str, list[float]]
    ended: dict[str, bool]
    differences: dict[str, Difference]


@dataclass(frozen=True)
class Comparison:
    """Arms with a common protocol; `left_out` says of each other run why."""

    study: str
    arms: tuple[Arm, ...]
    left_out: tuple[str, ...]

    @property
    def base(self) -> Arm:
        return self.arms[0]

    @property
    def others(self) -> tuple[Arm, ...]:
        return self.arms[1:]

    @property
    def scale(self) -> str:
        return self.base.protocol.scale

    @property
    def equal(self) -> str:
        return str(self.base.runs[0].run.manifest["equal"])

    @cached_property
    def is_swept(self) -> bool:
        """Whether the study has a sweep of every arm's learning rate."""
        from smollm2.runs import list_runs

        folder = self.base.runs[0].run.path.parent
        runs, _ = list_runs(folder.parent, folder.name)
        swept = {run.arm for run in runs if run.manifest["role"] == "sweep"}
        return swept.issuperset(arm.name for arm in self.arms)

    @cached_property
    def primary(self) -> dict[str, Difference]:
        """Of the final test loss to the first arm, Holm over the arms."""
        return self.differences(PRIMARY)

    def differences(self, metric: Metric) -> dict[str, Difference]:
        """Of each arm to the first; empty where a run has no such number."""
        columns = {arm.name: arm.values(metric) for arm in self.arms}
        if not all(math.isfinite(value) for values in columns.values() for value in values):
            return {}
        base = columns.pop(self.base.name)
        return differences(base, columns, lower_is_better=metric.lower_is_better)

    @cached_property
    def views(self) -> tuple[View, ...]:
        return tuple(view_of(self, axis) for axis in ("tokens", "flops", "seconds"))

    @cached_property
    def tasks(self) -> pd.DataFrame:
        """A row for each task, metric and arm: value (mean over runs), std, n, total, chance."""
        return tasks_of(self.arms)


def view_of(comparison: Comparison, axis: str) -> View:
    """See `View`."""
    ends = {arm.name: fmean(end_of(facts, axis) for facts in arm.runs) for arm in comparison.arms}
    budget = min(ends.values())
    ended = {name: end <= budget * (1 + SAME_BUDGET[axis]) for name, end in ends.items()}
    losses = {
        arm.name: arm.values(PRIMARY)
        if ended[arm.name]
        else [read_curve(facts, axis, budget) for facts in arm.runs]
        for arm in comparison.arms
    }
    columns = {name: values for name, values in losses.items() if ended[name]}
    base = columns.pop(comparison.base.name, None)
    found = differences(base, columns) if base is not None and columns else {}
    return View(axis, budget, losses, ended, found)


def end_of(facts: RunFacts, axis: str) -> float:
    """How much of `axis` a run had in all."""
    ends = {"tokens": facts.tokens, "flops": facts.flops, "seconds": facts.values["seconds"]}
    return float(ends[axis])


def read_curve(facts: RunFacts, axis: str, budget: float) -> float:
    """The validation loss at `budget`, on the straight line between two validations."""
    import numpy as np

    return float(np.interp(budget, facts.curve[axis], facts.curve["loss"]))


def tasks_of(arms: Sequence[Arm]) -> pd.DataFrame:
    """See `Comparison.tasks`; only scores on the same questions in the same way stand together."""
    frames = [
        facts.tasks.assign(arm=arm.name, run=facts.name) for arm in arms for facts in arm.runs
    ]
    rows = pd.concat(frames)
    grouped = rows.groupby([*TASK_KEYS, "arm"], sort=False)["value"]
    table = grouped.agg(["mean", "std", "count"]).reset_index()
    chances = rows.groupby(TASK_KEYS, sort=False)["chance"].first().reset_index()
    return table.merge(chances, on=TASK_KEYS, how="left")


def compare_arms(study: str, arms: "dict[str, list[Run]]") -> Comparison:
    """The runs that share the controlled fields and the horizon of the first arm's newest run.

    A run that is broken or has another protocol is left out, and `left_out` says so.

    Raises:
        UserError: a run stands in two arms, or an arm has no run left.
    """
    left_out: list[str] = []
    facts = {arm: readable(runs, left_out) for arm, runs in arms.items()}
    for arm, found in facts.items():
        if not found:
            raise UserError(f"No run of {arm!r} can be read: {' '.join(left_out)}")
    refuse_shared(facts)
    newest = {arm: max(found, key=finished_at) for arm, found in facts.items()}
    base = newest[next(iter(arms))]
    kept: dict[str, list[RunFacts]] = {arm: [] for arm in arms}
    for arm, found in facts.items():
        for run in found:
            if reason := mismatch(base, run):
                left_out.append(f"{run.name} is left out: {reason}.")
            elif run.protocol.model != newest[arm].protocol.model:
                left_out.append(
                    f"{run.name} is left out: its architecture is not that of {newest[arm].name}."
                )
            elif twin := next((k for k in kept[arm] if is_same_run(k, run)), None):
                left_out.append(f"{run.name} is left out: it is {twin.name} once more.")
            else:
                kept[arm].append(run)
        if not kept[arm]:
            raise UserError(
                f"No run of {arm!r} shares the protocol of {base.name}: {left_out[-1]} Train one "
                "with the same settings."
            )
    return Comparison(
        study,
        tuple(
            Arm(arm, tuple(sorted(found, key=lambda facts: facts.protocol.seed)))
            for arm, found in kept.items()
        ),
        tuple(left_out),
    )


def readable(runs: "list[Run]", left_out: list[str]) -> list[RunFacts]:
    found = []
    for run in runs:
        try:
            found.append(read_facts(run))
        except UserError as error:
            left_out.append(f"{run.name} is left out: {error}")
    return found


def refuse_shared(facts: dict[str, list[RunFacts]]) -> None:
    """Raise `UserError` if a run stands in two arms."""
    seen: dict[Any, str] = {}
    for arm, found in facts.items():
        for run in found:
            other = seen.setdefault(run.run.path.resolve(), arm)
            if other != arm:
                raise UserError(f"{run.name} stands in both {other!r} and {arm!r}.")


def is_same_run(one: RunFacts, other: RunFacts) -> bool:
    """Whether they repeat one another: the same seeds and settings are no second sample."""
    return one.protocol == other.protocol


def finished_at(facts: RunFacts) -> str:
    return str(facts.run.manifest["finished_at"])


def mismatch(base: RunFacts, other: RunFacts) -> str:
    """What keeps two runs from being compared, as the end of a sentence; empty if nothing does."""
    from smollm2.protocol import differing

    def shared(facts: RunFacts) -> dict[str, Any]:
        manifest = facts.run.manifest
        fields = facts.protocol.controlled() | {
            "equal": manifest["equal"],
            "started from": manifest["started_from"],
        }
        # Only a study that gives its arms equal FLOPs or seconds lets their steps differ.
        return fields | ({"steps": facts.protocol.steps} if manifest["equal"] == "tokens" else {})

    if fields := differing(shared(base), shared(other), names=(base.name, "here")):
        return f"it differs from {base.name} in {fields}"
    if base.run.manifest["equal"] == "flops":
        ratio = other.flops / base.flops
        # A step is the least by which FLOPs can differ.
        steps = min(base.protocol.steps, other.protocol.steps)
        if abs(ratio - 1) > max(SAME_BUDGET["flops"], 1 / steps):
            return f"it had {ratio:.2f} times the FLOPs of {base.name}"
    return ""


@dataclass(frozen=True)
class TaskDifference:
    """How the checkpoints of an arm and of the first one answer the same questions.

    `interval` is over questions, each the mean over an arm's runs: it holds for these checkpoints
    and does not contain the noise of training.
    """

    arm: str
    task: str
    metric: str
    n: int
    total: int
    interval: Interval


def task_differences(comparison: Comparison) -> list[TaskDifference]:
    """For each task and metric that every run of two arms was scored on in the same way.

    Raises:
        UserError: the records behind a score are missing or damaged.
    """
    found = []
    sizes = {arm.name: len(arm.runs) for arm in comparison.arms}
    for _, rows in comparison.tasks.groupby(TASK_KEYS, sort=False):
        # Only arms of which every run was scored so.
        complete = {r["arm"]: r for r in rows.to_dict("records") if r["count"] == sizes[r["arm"]]}
        if comparison.base.name not in complete:
            continue
        base = item_means(comparison.base, complete[comparison.base.name])
        for arm in comparison.others:
            if row := complete.get(arm.name):
                interval = paired(base, item_means(arm, row))
                found.append(
                    TaskDifference(
                        arm.name, row["task"], row["metric"], row["n"], row["total"], interval
                    )
                )
    return found


def item_means(arm: Arm, row: dict[Any, Any]) -> list[float]:
    """A value for each question behind a row of `Comparison.tasks`, the mean over an arm's runs."""
    from smollm2.scores import recorded_items

    by_run = [
        [
            score.value(row["metric"])
            for score in recorded_items(
                facts.run, items_of(facts, row), row["n"], row["fingerprint"]
            )
        ]
        for facts in arm.runs
    ]
    return [fmean(values) for values in zip(*by_run, strict=True)]


def items_of(facts: RunFacts, row: dict[Any, Any]) -> str:
    """The file of the scores behind a run's share of a row of `Comparison.tasks`."""
    same = facts.tasks
    for key in TASK_KEYS:
        same = same[same[key] == row[key]]
    return str(same["items"].iloc[0])


def mean_and_spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and the standard deviation if there are at least two."""
    return fmean(values), stdev(values) if len(values) > 1 else None


def to_dict(comparison: Comparison) -> dict[str, Any]:
    """Everything as JSON."""
    metrics = (PRIMARY, *SECONDARY)
    return {
        "study": comparison.study,
        "arms": [
            {
                "arm": arm.name,
                "runs": [facts.name for facts in arm.runs],
                "seeds": arm.seeds,
                "parameters": arm.parameters,
                "training_flops_per_token": arm.flops_per_token,
                "kv_bytes_per_token": arm.kv_bytes_per_token,
                "tokens": [facts.tokens for facts in arm.runs],
                "flops": [facts.flops for facts in arm.runs],
                "learning_rate": arm.protocol.recipe.lr,
                "metrics": {
                    metric.name: [none_if_nan(value) for value in arm.values(metric)]
                    for metric in metrics
                },
            }
            for arm in comparison.arms
        ],
        "differences": [
            {"arm": arm, "metric": metric.name, "primary": metric is PRIMARY}
            | dataclasses.asdict(difference)
            for metric in metrics
            for arm, difference in comparison.differences(metric).items()
        ],
        "views": [
            {
                "equal": view.axis,
                "budget": view.budget,
                "losses": view.losses,
                "schedule_ended": view.ended,
                "differences": {
                    arm: dataclasses.asdict(difference)
                    for arm, difference in view.differences.items()
                },
            }
            for view in comparison.views
        ],
        "tasks": [
            {str(key): none_if_nan(value) for key, value in row.items()}
            for row in comparison.tasks.to_dict("records")
        ],
        "left_out": list(comparison.left_out),
    }


def none_if_nan(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value
