"""A finished run's files, read and checked once, and the metrics read from them."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from smolctl.analysis.task_rows import Row, task_key, task_scores
from smollm2.errors import UserError
from smollm2.runs.conditions import FINAL_TEST, FINAL_VALIDATION
from smollm2.runs.document_sums import read_documents
from smollm2.runs.manifest_types import SCORED_TEXT

if TYPE_CHECKING:
    from smollm2.protocol.run_config import ResolvedConfig
    from smollm2.runs.run import Run
    from smollm2.runs.tables import Columns


class RunTables(NamedTuple):
    """What the metrics are read from.

    Args:
        train: train.csv.
        curve: val.csv.
        test: scores on the test split at the end of training, by name.
    """

    train: "Columns"
    curve: "Columns"
    test: Mapping[str, float]


def measured(cells: "np.ndarray") -> "np.ndarray":
    """Those that are not empty; one NaN if there are none."""
    found = cells[~np.isnan(cells)]
    return found if len(found) else np.array([math.nan])


@dataclass(frozen=True)
class Metric:
    """A number that each run has. To add one, add an entry to `METRICS`.

    Args:
        digits: shown after the decimal point.
        read: takes it from the tables of a run; NaN if the run is too short to have it.
        is_of_machine: whether it depends on the machine more than on the model.
        is_loss: whether it is the primary metric in another unit; it has no interval then.
    """

    name: str
    label: str
    digits: int
    read: Callable[[RunTables], float]
    is_of_machine: bool = False
    is_loss: bool = False


LOSS = Metric("loss", "test loss", 4, lambda run: run.test["loss"])  # the primary metric
ACCURACY = Metric("accuracy", "test accuracy", 4, lambda run: run.test["accuracy"])
BITS_PER_BYTE = Metric(
    *("bits_per_byte", "test bits per byte", 4),
    read=lambda run: run.test["bits_per_byte"],
    is_loss=True,
)
TOKENS_PER_SECOND = Metric(
    *("tokens_per_second", "tokens per second", 0),
    read=lambda run: np.median(measured(run.train["tokens_per_second"])),
    is_of_machine=True,
)
SECONDS = Metric(
    *("seconds", "training seconds", 1),
    read=lambda run: run.train["seconds"][-1],
    is_of_machine=True,
)
PEAK_MEMORY = Metric(
    *("peak_memory_mb", "peak memory, MB", 0),
    read=lambda run: measured(run.train["peak_memory_mb"]).max(),
    is_of_machine=True,
)
METRICS = (LOSS, ACCURACY, BITS_PER_BYTE, TOKENS_PER_SECOND, SECONDS, PEAK_MEMORY)
SECONDARY = METRICS[1:]


@dataclass(frozen=True)
class FinishedRun:
    """A finished run whose files were read and checked.

    Args:
        values: the metrics by name; NaN where a run is too short to have one.
        curve: val.csv: step, tokens, flops, seconds, loss.
        train: train.csv.
        tasks: see `task_scores`.
        documents: see `read_documents`.
    """

    run: "Run"
    protocol: "ResolvedConfig"
    values: dict[str, float]
    curve: "Columns"
    train: "Columns"
    tasks: list[Row]
    documents: "Columns | None"

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
    def test_documents(self) -> int:
        """The number of documents behind the final test loss."""
        if self.documents is not None:
            return len(self.documents["document"])
        return self._final_test("clusters")

    @cached_property
    def effective_documents(self) -> float:
        """As many documents of one length would have the spread of these: the squared sum of their
        tokens over the sum of their squares (Kish 1965, *Survey Sampling*, 11.7). Their number in
        runs of older versions, which kept no sums of each."""
        if self.documents is None:
            return self.test_documents
        sizes = self.documents["n_tokens"].tolist()
        return sum(sizes) ** 2 / sum(size**2 for size in sizes)

    @property
    def floors(self) -> dict[str, float] | None:
        """The test losses of n-gram models counted on as many tokens as the run has seen, in
        nats/token: `unigram`, `trigram`; None if they were not counted on the text that the run
        was scored on. Older versions counted on the whole test split, whatever was scored."""
        found: dict[str, Any] | None = self.run.manifest.get("floors")
        if found and (found.get("text") == SCORED_TEXT or self.is_tested_whole):
            return found
        return None

    @property
    def has_other_floors(self) -> bool:
        """Whether its floors are of other text than it was scored on."""
        return self.floors is None and bool(self.run.manifest.get("floors"))

    @property
    def is_tested_whole(self) -> bool:
        """Whether the final test covers the test split."""
        return self._final_test("n") == self._final_test("total")

    def _final_test(self, column: str) -> int:
        """A number of the final test in eval.csv, the same for all of its metrics."""
        scores = self.run.columns("eval")
        return int(scores[column][scores["suite"] == FINAL_TEST][0])

    @cached_property
    def tasks_by_key(self) -> dict[tuple[Any, ...], Row]:
        """The rows of `tasks` by their `task_key`."""
        return {task_key(row): row for row in self.tasks}

    @property
    def machine(self) -> tuple[str, int]:
        """The device's name and the number of threads."""
        environment = self.run.manifest["environment"]
        return str(environment["device_name"]), int(environment["threads"])


def read_finished(run: "Run") -> FinishedRun:
    """A finished run, checked.

    Raises:
        UserError: the run was imported; or a table is missing, cut off, lacks a column or has a
            cell that is not a number.
    """
    if run.is_imported:
        raise UserError(f"Run {run.name!r} was imported, so its training is unknown.")
    try:
        return read_checked(run)
    except UserError:  # a ValueError, but already a sentence
        raise
    except (OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
        raise UserError(f"Run {run.name!r} has files that cannot be read: {error}.") from None


def read_checked(run: "Run") -> FinishedRun:
    """`read_finished`, which may raise other errors too."""
    protocol = run.protocol
    train, curve = run.columns("train"), run.columns("val")
    for name, table, columns in (
        ("train", train, ("step", "seconds", "loss")),
        ("val", curve, ("step", "tokens", "flops", "seconds", "loss")),
    ):
        for column in columns:
            if not np.isfinite(table[column]).all():
                raise UserError(f"{run.name}/{name}.csv has a {column} that is not a number.")
        if not len(table["step"]) or table["step"][-1] != protocol.steps:
            raise UserError(f"{run.name}/{name}.csv does not end at step {protocol.steps}.")
    tables = RunTables(train, curve, run.test_scores())
    values = {metric.name: float(metric.read(tables)) for metric in METRICS}
    if not math.isfinite(values[LOSS.name]):
        raise UserError(f"{run.name}/eval.csv has a loss that is not a number.")
    if values[TOKENS_PER_SECOND.name] <= 0:
        raise UserError(f"{run.name}/train.csv has a tokens_per_second that is not positive.")
    str(run.manifest["finished_at"])  # raises KeyError; it decides which run is newest
    documents = read_documents(run)
    return FinishedRun(run, protocol, values, curve, train, task_scores(run), documents)


def read_imported(run: "Run") -> FinishedRun:
    """An imported run: its scores, if it was scored, without any training.

    Raises:
        UserError: eval.csv is damaged.
    """
    tasks = task_scores(run) if (run.path / "eval.csv").exists() else []
    return FinishedRun(run, run.protocol, {}, {}, {}, tasks, None)


def tuning_loss(run: "Run") -> float:
    """The validation loss by which a finished run of a tuning is judged: over all validation
    documents where eval.csv has it; else the last of val.csv, over the first of them.

    Raises:
        UserError: the table cannot be read, or is empty.
    """
    if (run.path / "eval.csv").exists():
        scores = run.columns("eval")
        is_loss = (scores["suite"] == FINAL_VALIDATION) & (scores["metric"] == "loss")
        if is_loss.any():
            return float(scores["value"][is_loss][-1])
    losses = run.columns("val")["loss"]
    if not len(losses):
        raise UserError(f"{run.name}/val.csv has no validation.")
    return float(losses[-1])


def siblings(run: "Run") -> "list[Run]":
    """Every readable run in the study of `run`, itself included."""
    return readable_runs(run.study_path)


def readable_runs(study: Path) -> "list[Run]":
    """Every readable run of the study in that folder."""
    from smollm2.runs.run import list_runs

    return list_runs(study.parent, study.name)[0]


def mean_and_spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and standard deviation. Both are NaN if a value is not finite; the standard deviation
    is None for a single value."""
    if not all(map(math.isfinite, values)):
        return math.nan, math.nan
    return fmean(values), stdev(values) if len(values) > 1 else None
