"""What the runs of a comparison became when they were quantized, and whether it harmed an arm more
or less than the first one.

The number is the change of the loss, quantized less as trained, on the same text. The unit is the
run, and the verdicts on every configuration of every arm are one family.
"""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import TYPE_CHECKING, Any

import pandas as pd

from smolctl.comparison import Arm, Comparison
from smolctl.facts import RunFacts
from smolctl.scoring import SPLITS
from smolctl.stats import Difference, Interval, family, paired
from smolctl.task_scores import TASK_KEYS
from smollm2.errors import UserError
from smollm2.quantize.config import QuantConfig
from smollm2.tables import TABLES, Tables

if TYPE_CHECKING:
    from smollm2.runs import Run

BF16 = "bf16"  # the row of the model as it was trained
WORDS = (
    *("name", "backend", "method", "skipped", "dtype", "device", "device_name", "fingerprint"),
    "reason",
)
NUMBERS = tuple(column for column in TABLES["quantize"] if column not in WORDS)
# The change of a loss depends on these, and a speed on those.
SAME_LOSS = ("n", "fingerprint", "dtype", "device")
SAME_SPEED = ("dtype", "device_name", "threads")
# Where the quantized shares of two arms differ by more, they are not quantized alike.
SAME_SHARE = 0.01
LOSS_DELTA = "loss_delta"


@dataclass(frozen=True)
class Configuration:
    """One quantization of one arm.

    Args:
        name: as `QuantConfig.name`, or `bf16`.
        rows: of quantize.csv, a row a run: numbers, NaN where they are not measured, and texts;
            besides, `run` is its name, `total` and `embedding` count its parameters.
    """

    arm: str
    name: str
    rows: pd.DataFrame

    def values(self, column: str) -> list[float]:
        """A number for each run that has it."""
        return [float(value) for value in self.rows[column].dropna()]

    def mean(self, column: str) -> float:
        """Over runs; NaN where none has it."""
        values = self.values(column)
        return fmean(values) if values else math.nan

    def texts(self, column: str) -> list[str]:
        """What the runs say, each once."""
        return [text for text in dict.fromkeys(self.rows[column]) if text]

    @property
    def matrix_share(self) -> float:
        """Of the parameters outside the embedding, which is a smaller part of a larger model, the
        share that is quantized; NaN where it is not known."""
        total, embedding = self.mean("total"), self.mean("embedding")
        quantized = self.mean("quantized_share") * total - embedding * self.has_small_embedding
        return quantized / (total - embedding)

    @property
    def has_small_embedding(self) -> bool:
        """Whether the embedding is quantized."""
        skipped = any("embed.weight" in text for text in self.texts("skipped"))
        return bool(self.values("embedding_bits")) and not skipped

    @property
    def bytes_a_parameter(self) -> float:
        """On disk, without the embedding; NaN where it is not measured."""
        matrices = self.mean("total") - self.mean("embedding")
        return self.mean("disk_bytes_without_embedding") / matrices

    def conditions(self, columns: Sequence[str], measured: str) -> set[tuple[Any, ...]]:
        """Under which `measured` was measured."""
        rows = self.rows.dropna(subset=[measured])
        return set(rows[list(columns)].itertuples(index=False, name=None))


@dataclass(frozen=True)
class Pair:
    """A configuration of an arm beside the same one of the first arm.

    Args:
        first, second: without rows where it was not tried.
        problem: why their losses may not be compared, as the end of a sentence; or empty.
        difference: of the change of the loss, second less first; None where there is a problem.
    """

    arm: str
    name: str
    first: Configuration
    second: Configuration
    problem: str = ""
    difference: Difference | None = None

    @property
    def has_unequal_shares(self) -> bool:
        """Whether it is known that more of one is quantized than of the other."""
        both = (self.first, self.second)
        is_known = all(one.values(LOSS_DELTA) and one.matrix_share >= 0 for one in both)
        return is_known and not have_equal_shares(*both)

    @property
    def has_single_run(self) -> bool:
        """Whether one run stands for an arm."""
        return min(len(one.values(LOSS_DELTA)) for one in (self.first, self.second)) == 1

    @property
    def document_error(self) -> float:
        """Standard error over documents of the difference, at most: the documents are the same, so
        that the errors of the two, and of an arm's runs, depend on each other somehow."""
        return self.first.mean("loss_delta_stderr") + self.second.mean("loss_delta_stderr")


@dataclass(frozen=True)
class TaskChange:
    """The score of a task after quantizing, over the runs of an arm scored in both ways.

    Args:
        row: of eval.csv, of the first run; `before` and `after` are means over `runs` runs.
        change: over questions, each the mean over runs: the noise of training is not in it.
    """

    arm: str
    name: str
    row: dict[str, Any]
    runs: int
    before: float
    after: float
    change: Interval


@dataclass(frozen=True)
class Quantized:
    """Every configuration of every arm of `comparison`, by name, bf16 first.

    Args:
        arms: an arm that was not quantized has none.
        left_out: a sentence on each quantize.csv that cannot be read.
    """

    comparison: Comparison
    arms: dict[str, dict[str, Configuration]]
    left_out: tuple[str, ...]

    @property
    def tasks(self) -> list[TaskChange]:
        """Of the models whose tasks were scored."""
        return self.tasks_and_notes[0]

    @property
    def task_notes(self) -> list[str]:
        """A sentence on each model whose scores cannot be read."""
        return self.tasks_and_notes[1]

    @cached_property
    def tasks_and_notes(self) -> tuple[list[TaskChange], list[str]]:
        notes: list[str] = []
        return [task for arm in self.comparison.arms for task in task_changes(arm, notes)], notes

    @property
    def is_measured(self) -> bool:
        return any(self.names)

    @property
    def names(self) -> list[str]:
        """Of the configurations that any arm has, bf16 aside."""
        found = (c for by_name in self.arms.values() for c in by_name.values() if c.name != BF16)
        return list(dict.fromkeys(c.name for c in sorted(found, key=in_order)))

    @property
    def smallest_at_4_bits(self) -> dict[str, tuple[str, float]]:
        """Of each arm that was quantized to 4 bits the configuration with the fewest bytes a
        parameter, and those; of equals to three digits the first."""
        smallest = {}
        for arm, by_name in self.arms.items():
            sizes = {
                name: round(one.bytes_a_parameter, 3)
                for name, one in by_name.items()
                if one.mean("bits") == 4 and not math.isnan(one.bytes_a_parameter)
            }
            if sizes:
                name = min(sizes, key=sizes.__getitem__)
                smallest[arm] = (name, sizes[name])
        return smallest

    @property
    def is_judged(self) -> bool:
        """Bytes, speed and what quantizing changes carry over from no smaller scale."""
        return self.comparison.scale == "full"

    @cached_property
    def pairs(self) -> tuple[Pair, ...]:
        """Every arm beside the first in each configuration that either has."""
        base = self.comparison.base.name
        pairs = [
            self.pair(self.configuration(base, name), self.configuration(arm.name, name))
            for arm in self.comparison.others
            for name in self.names
            if self.arms[base] and self.arms[arm.name]
            if name in self.arms[base] or name in self.arms[arm.name]
        ]
        changes = {
            (pair.arm, pair.name): (pair.first.values(LOSS_DELTA), pair.second.values(LOSS_DELTA))
            for pair in pairs
            if not pair.problem
        }
        found = family(changes)
        return tuple(
            Pair(p.arm, p.name, p.first, p.second, p.problem, found.get((p.arm, p.name)))
            for p in pairs
        )

    def configuration(self, arm: str, name: str) -> Configuration:
        """That of an arm, without rows where it was not tried."""
        columns = [*TABLES["quantize"], "run", "total", "embedding"]
        return self.arms[arm].get(name) or Configuration(arm, name, pd.DataFrame(columns=columns))

    def pair(self, first: Configuration, second: Configuration) -> Pair:
        """The two, with the problem that they have."""
        problem = f"{self.comparison.scale} scale does not carry over"
        if self.is_judged:
            problem = not_comparable(first, second)
        return Pair(second.arm, second.name, first, second, problem)


def not_comparable(first: Configuration, second: Configuration) -> str:
    """See `Pair.problem`."""
    for one in (first, second):
        if one.rows.empty:
            return f"{one.arm} was not quantized so"
        if not one.values(LOSS_DELTA):
            why = "; ".join(one.texts("reason"))
            return f"the loss of {one.arm} was not measured" + (f" ({why})" if why else "")
    if not have_equal_shares(first, second):
        return (
            f"without the embedding {percent(first.matrix_share)} of the parameters of {first.arm} "
            f"are quantized and {percent(second.matrix_share)} of those of {second.arm}"
        )
    if first.has_small_embedding != second.has_small_embedding:
        return "the embedding of one of them is quantized, that of the other is not"
    conditions = {c for one in (first, second) for c in one.conditions(SAME_LOSS, LOSS_DELTA)}
    if len(conditions) > 1:
        return "the losses are not of the same text, dtype and device"
    return ""


def have_equal_shares(first: Configuration, second: Configuration) -> bool:
    """Whether as much of both is quantized; not of shares that are not known."""
    return abs(first.matrix_share - second.matrix_share) <= SAME_SHARE  # False of NaN


def percent(share: float) -> str:
    """`99.9 %`; `an unknown share` of NaN."""
    return "an unknown share" if math.isnan(share) else f"{100 * share:.1f} %"


def quantized(comparison: Comparison) -> Quantized:
    """What the files of a comparison's runs say about quantizing them."""
    left_out: list[str] = []
    arms = {
        arm.name: configurations(arm.name, [facts.run for facts in arm.runs], left_out)
        for arm in comparison.arms
    }
    return Quantized(comparison, arms, tuple(left_out))


def configurations(
    arm: str, runs: "Sequence[Run]", left_out: list[str]
) -> dict[str, Configuration]:
    """The configurations of an arm by name, 16 bits first; a run without the file has none.

    Args:
        left_out: a sentence on each file that cannot be read is added.
    """
    frames = []
    for run in runs:
        try:
            frame = read_rows(run)
        except UserError as error:
            left_out.append(f"The quantization of {run.name} is left out: {error}")
            continue
        if frame is not None and not frame.empty:
            counts = run.manifest["parameters"]
            frames.append(
                frame.assign(run=run.name, total=counts["total"], embedding=counts["embedding"])
            )
    if not frames:
        return {}
    groups = pd.concat(frames, ignore_index=True).groupby("name", sort=False)
    found = [Configuration(arm, str(name), rows) for name, rows in groups]
    return {one.name: one for one in sorted(found, key=in_order)}


def in_order(configuration: Configuration) -> tuple[float, str, float, str]:
    """More bits first, then by backend and group size."""
    row = configuration.rows.iloc[0]
    size = 0.0 if math.isnan(row["group_size"]) else row["group_size"]
    return (-row["bits"], row["backend"] != "torchao", size, configuration.name)


def read_rows(run: Tables) -> pd.DataFrame | None:
    """quantize.csv of a run: `NUMBERS` as numbers, NaN for an empty cell, `WORDS` as texts; None
    without the file.

    Raises:
        UserError: it lacks a column, a line of it is cut off, a cell that should be a number is
            none, or a configuration stands in it twice.
    """
    if not (run.path / "quantize.csv").exists():
        return None
    try:
        run.table("quantize")  # says what is missing of the file as a whole
        rows = run.rows("quantize")
    except UserError:
        raise
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{run.name}/quantize.csv cannot be read: {error}.") from None
    for row in rows:
        if None in row or None in row.values():
            raise UserError(f"{run.name}/quantize.csv has a line of another length.")
        for column in NUMBERS:
            row[column] = number_in(row[column], f"{run.name}/quantize.csv has a {column}")
        if not row["name"] or math.isnan(row["bits"]):
            raise UserError(f"{run.name}/quantize.csv has a row without a name or bits.")
        if row["name"] != BF16:
            QuantConfig.of(row["name"])
    names = [row["name"] for row in rows]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"{run.name}/quantize.csv has two rows of {twice}.")
    return pd.DataFrame(rows, columns=list(TABLES["quantize"]))


def number_in(cell: str, start: str) -> float:
    """A finite number, or NaN for an empty cell; anything else is an error that begins so."""
    if not cell:
        return math.nan
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{start} that is not a number: {cell!r}.")
    return value


def task_changes(arm: Arm, notes: list[str]) -> list[TaskChange]:
    """Those of an arm's runs whose quantized models answered the same questions in the same way.

    Args:
        notes: a sentence on each model whose scores cannot be read is added.
    """
    found: dict[tuple[Any, ...], list[tuple[dict[str, Any], list[float], list[float]]]] = {}
    for facts in arm.runs:
        for folder in sorted(facts.run.path.glob("quantized/*/")):
            tables = Tables(folder)
            if not (folder / "eval.csv").exists():
                continue
            try:
                for row, before, after in common_items(facts, tables):
                    key = (tables.name, *(row[name] for name in TASK_KEYS))
                    found.setdefault(key, []).append((row, before, after))
            except (UserError, OSError, ValueError, KeyError) as error:
                notes.append(f"The tasks of {facts.name}+{tables.name} are left out: {error}")
    changes = []
    for (name, *_), runs in most_shared(found).items():
        before, after = (
            [fmean(values) for values in zip(*(run[side] for run in runs), strict=True)]
            for side in (1, 2)
        )
        change = paired(before, after)
        changes.append(
            TaskChange(arm.name, name, runs[0][0], len(runs), fmean(before), fmean(after), change)
        )
    return changes


def most_shared(found: dict[tuple[Any, ...], list[Any]]) -> dict[tuple[Any, ...], list[Any]]:
    """Of the sets of questions of a task and metric the one that most runs share, of such the
    largest; the keys are a name and `TASK_KEYS`."""
    best: dict[tuple[Any, ...], tuple[Any, ...]] = {}
    for key in found:
        name, task, metric, protocol, n, *_ = key
        same = (name, task, metric, protocol)
        rank = (len(found[key]), n)
        if same not in best or rank > (len(found[best[same]]), best[same][4]):
            best[same] = key
    return {key: found[key] for key in best.values()}


def common_items(
    facts: RunFacts, tables: Tables
) -> list[tuple[dict[str, Any], list[float], list[float]]]:
    """Rows of a quantized model's eval.csv that the run has too, with what each question adds
    before and after.

    Raises:
        UserError: a file is missing or damaged.
    """
    from smollm2.scores import recorded_items

    scores = tables.table("eval")
    scores = scores[~scores["task"].isin(SPLITS)]
    if scores.empty or facts.tasks.empty:
        return []
    both = facts.tasks.merge(scores, on=TASK_KEYS, suffixes=("_before", ""))
    found = []
    for _, rows in both.groupby(["items_before", "items", "n"], sort=False):
        # All but the metric is the same.
        same = {str(key): cell for key, cell in rows.to_dict("records")[0].items()}
        n, fingerprint = same["n"], str(same["fingerprint"])
        before = recorded_items(facts.run, same["items_before"], n, fingerprint)
        after = recorded_items(tables, same["items"], n, fingerprint)
        for metric in rows["metric"]:
            old, new = ([s.value(metric) for s in scores] for scores in (before, after))
            found.append((same | {"metric": metric}, old, new))
    return found
