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
    """A number of which a run has one, shown with so many digits after the point.

    is_of_machine: whether it says more of the machine than of the model.
    """

    name: str
    label: str
    lower_is_better: bool
    digits: int
    is_of_machine: bool = False


LOSS = Metric("loss", "test loss", True, 4)  # the primary one
ACCURACY = Metric("accuracy", "test accuracy", False, 4)
BITS_PER_BYTE = Metric("bits_per_byte", "test bits per byte", True, 4)
TOKENS_PER_SECOND = Metric("tokens_per_second", "tokens per second", False, 0, True)
SECONDS = Metric("seconds", "training seconds", True, 1, True)
PEAK_MEMORY = Metric("peak_memory_mb", "peak memory, MB", True, 0, True)
SECONDARY = (ACCURACY, BITS_PER_BYTE, TOKENS_PER_SECOND, SECONDS, PEAK_MEMORY)
METRICS = (LOSS, *SECONDARY)


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

    @property
    def flops(self) -> float:
        return self.protocol.steps * self.protocol.flops_per_step

    @property
    def tokens(self) -> int:
        return self.protocol.steps * self.protocol.tokens_per_step

    @property
    def machine(self) -> tuple[str, int]:
        """The device's name and the number of threads."""
        environment = self.run.manifest["environment"]
        return str(environment["device_name"]), int(environment["threads"])


def read_facts(run: "Run") -> RunFacts:
    """The facts of a finished run.

    Raises:
        UserError: a table is missing, cut off, lacks a column or holds what is no number.
    """
    try:
        return checked_facts(run)
    except UserError:
        raise
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"Run {run.name!r} has files that cannot be read: {error}.") from None


def checked_facts(run: "Run") -> RunFacts:
    """See `read_facts`; raises more kinds of errors."""
    protocol = run.protocol
    train, curve, evaluated = (run.table(name) for name in ("train", "val", "eval"))
    for name, table, columns in (
        ("train", train, ("step", "seconds", "loss")),
        ("val", curve, ("step", "tokens", "flops", "seconds", "loss")),
    ):
        for column in columns:
            if not pd.to_numeric(table[column]).map(math.isfinite).all():
                raise UserError(f"{run.name}/{name}.csv has a {column} that is not a number.")
        if table.empty or table["step"].iloc[-1] != protocol.steps:
            raise UserError(f"{run.name}/{name}.csv does not end at step {protocol.steps}.")
    scores = run.test_scores()
    values = {
        metric: float(scores[metric]) for metric in (LOSS.name, ACCURACY.name, BITS_PER_BYTE.name)
    } | {
        "tokens_per_second": float(train["tokens_per_second"].median()),
        "seconds": float(train["seconds"].iloc[-1]),
        "peak_memory_mb": float(train["peak_memory_mb"].max()),
    }
    if not math.isfinite(values["loss"]):
        raise UserError(f"{run.name}/eval.csv has a loss that is not a number.")
    str(run.manifest["finished_at"])  # must be there, as it decides which run is newest
    tasks = evaluated[~evaluated["task"].isin(SPLITS)]
    return RunFacts(run, protocol, values, curve, train, tasks)


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
        """The peak learning rate, and Muon's where it is used."""
        recipe = self.protocol.recipe
        return (recipe.lr, recipe.muon_lr) if recipe.optimizer == "muon" else (recipe.lr,)

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
    def machines(self) -> list[tuple[str, int]]:
        return sorted({facts.machine for arm in self.arms for facts in arm.runs})

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
        return tasks_of(self.arms)

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


def siblings(run: "Run") -> "list[Run]":
    """Every readable run of the study that `run` is in, itself included."""
    from smollm2.runs import list_runs

    folder = run.path.resolve().parent
    return list_runs(folder.parent, folder.name)[0]


def compare_arms(
    study: str, arms: "dict[str, list[Run]]", left_out: Sequence[str] = ()
) -> Comparison:
    """The runs that share the controlled fields and the horizon of the first arm's newest run.

    A run that is broken, unfinished, a repetition or of another protocol is left out, and
    `left_out` says so, after what it begins with.

    Raises:
        UserError: a run stands in two arms, or an arm has no run left.
    """
    reasons = list(left_out)
    facts = {arm: readable(runs, reasons) for arm, runs in arms.items()}
    for arm, found in facts.items():
        if not found:
            raise UserError(f"No run of {arm!r} can be read: {' '.join(reasons)}")
    refuse_shared(facts)
    base = max(facts[next(iter(arms))], key=finished_at)
    kept = []
    for arm, found in facts.items():
        common = [run for run in found if not noted(mismatch(base, run), run, reasons)]
        if not common:
            raise UserError(
                f"No run of {arm!r} shares the protocol of {base.name}: {reasons[-1]} Train one "
                "with the same settings."
            )
        runs = one_of_each_seed(common, reasons)
        failed = unfinished_of(found, arm, reasons)
        kept.append(Arm(arm, tuple(sorted(runs, key=seeds_of)), tuple(failed)))
    return Comparison(study, tuple(kept), tuple(reasons))


def readable(runs: "list[Run]", left_out: list[str]) -> list[RunFacts]:
    found = []
    for run in runs:
        try:
            found.append(read_facts(run))
        except UserError as error:
            left_out.append(f"{run.name} is left out: {error}")
    return found


def noted(reason: str, facts: RunFacts, left_out: list[str]) -> bool:
    """Whether there is a reason to leave a run out, which is then added."""
    if reason:
        left_out.append(f"{facts.name} is left out: {reason}.")
    return bool(reason)


def one_of_each_seed(found: list[RunFacts], left_out: list[str]) -> list[RunFacts]:
    """Of the runs of an arm those like the newest one, and of each seed the newest: the same seed
    once more is no second sample."""
    newest = max(found, key=finished_at)
    kept: dict[tuple[int, int], RunFacts] = {}
    for run in sorted(found, key=finished_at, reverse=True):
        twin = kept.get(seeds_of(run))
        reason = unlike(newest, run)
        if not reason and twin is not None:
            reason = f"it has the seed of {twin.name}"
        if not noted(reason, run, left_out):
            kept[seeds_of(run)] = run
    return list(kept.values())


def unlike(newest: RunFacts, other: RunFacts) -> str:
    """In what two runs of one arm are not the same treatment, as the end of a sentence."""
    one, two = newest.protocol, other.protocol
    if one.model != two.model:
        return f"its architecture is not that of {newest.name}"
    for name in ("lr", "muon_lr"):
        if (rate := getattr(two.recipe, name)) != getattr(one.recipe, name):
            return f"its {name} is {rate:g}, that of {newest.name} {getattr(one.recipe, name):g}"
    if one.steps != two.steps:
        return f"it has {two.steps} steps, {newest.name} {one.steps}"
    return ""


def unfinished_of(found: list[RunFacts], arm: str, left_out: list[str]) -> list[str]:
    """Notes the runs of an arm that have not ended; returns the names of those that failed."""
    arms = {facts.run.arm for facts in found}
    failed = []
    for run in siblings(found[0].run):
        if run.is_finished or run.manifest["role"] != "final" or run.arm not in arms:
            continue
        if run.manifest["state"] == "failed":
            failed.append(run.name)
            left_out.append(f"{run.name} is left out: it failed. {run.manifest['error']}")
        else:
            left_out.append(f"{run.name} is left out: it has not been finished.")
    return failed


def refuse_shared(facts: dict[str, list[RunFacts]]) -> None:
    """Raise `UserError` if a run stands in two arms."""
    seen: dict[Any, str] = {}
    for arm, found in facts.items():
        for run in found:
            other = seen.setdefault(run.run.path.resolve(), arm)
            if other != arm:
                raise UserError(f"{run.name} stands in both {other!r} and {arm!r}.")


def finished_at(facts: RunFacts) -> str:
    return str(facts.run.manifest["finished_at"])


def seeds_of(facts: RunFacts) -> tuple[int, int]:
    return facts.protocol.seed, facts.protocol.data_seed


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

    if fields := differing(shared(base), shared(other), names=(f"in {base.name}", "here")):
        return f"it differs from {base.name} ({fields})"
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
    and does not contain the noise of training. None where the records behind a score are gone,
    which `problem` says.
    """

    interval: Interval | None
    problem: str = ""


def task_difference(comparison: Comparison, row: dict[Any, Any]) -> TaskDifference | None:
    """That of a row of `Comparison.tasks`; None for the first arm, or if the two arms were not
    scored so with every run."""
    arms = {arm.name: arm for arm in comparison.arms}
    base, arm = comparison.base, arms[row["arm"]]
    table = comparison.tasks
    same = table[(table[TASK_KEYS] == pd.Series(row)[TASK_KEYS]).all(axis=1)]
    counts = dict(zip(same["arm"], same["count"], strict=True))
    if arm is base or any(counts.get(one.name) != len(one.runs) for one in (base, arm)):
        return None
    try:
        return TaskDifference(paired(item_means(base, row), item_means(arm, row)))
    except UserError as error:
        return TaskDifference(None, str(error))


def item_means(arm: Arm, row: dict[Any, Any]) -> list[float]:
    """A value for each question behind a row of `Comparison.tasks`, the mean over an arm's runs."""
    from smollm2.scores import recorded_items

    by_run = []
    for facts in arm.runs:
        tasks = facts.tasks
        same = tasks[(tasks[TASK_KEYS] == pd.Series(row)[TASK_KEYS]).all(axis=1)]
        name = str(same["items"].iloc[0])
        scores = recorded_items(facts.run, name, row["n"], row["fingerprint"])
        by_run.append([score.value(row["metric"]) for score in scores])
    return [fmean(values) for values in zip(*by_run, strict=True)]


def mean_and_spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and the standard deviation if there are at least two."""
    return fmean(values), stdev(values) if len(values) > 1 else None


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
            for row in comparison.tasks.to_dict("records")
            for difference in [task_difference(comparison, row)]
        ],
        "left_out": list(comparison.left_out),
    }


def none_if_nan(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value
