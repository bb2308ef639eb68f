"""What the files of one finished run say, read and checked once."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import TYPE_CHECKING

import pandas as pd

from smolctl.scoring import SPLITS
from smolctl.task_scores import TASK_KEYS
from smollm2.errors import UserError

if TYPE_CHECKING:
    from smollm2.protocol import Protocol
    from smollm2.runs import Run


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
    def test_documents(self) -> int:
        """Over how many documents the final test loss is."""
        table = self.run.table("eval")
        return int(table[table["protocol"] == self.protocol.final_test]["clusters"].iloc[0])

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
    if run.is_imported:
        raise UserError(f"Run {run.name!r} was imported, so that no training of it is known.")
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
    if values["tokens_per_second"] <= 0:
        raise UserError(f"{run.name}/train.csv has a tokens_per_second that is not positive.")
    str(run.manifest["finished_at"])  # must be there, as it decides which run is newest
    tasks = evaluated[~evaluated["task"].isin(SPLITS)]
    if tasks[["value", *TASK_KEYS]].isna().any(axis=None):
        raise UserError(f"{run.name}/eval.csv has a task with an empty cell.")
    return RunFacts(run, protocol, values, curve, train, tasks)


def imported_facts(run: "Run") -> RunFacts:
    """What little the files of an imported run say: its scores, but nothing of its training.

    Raises:
        UserError: eval.csv is missing or damaged.
    """
    scores, none = run.table("eval"), pd.DataFrame()
    return RunFacts(run, run.protocol, {}, none, none, scores[~scores["task"].isin(SPLITS)])


def siblings(run: "Run") -> "list[Run]":
    """Every readable run of the study that `run` is in, itself included."""
    from smollm2.runs import list_runs

    folder = run.path.resolve().parent
    return list_runs(folder.parent, folder.name)[0]


def mean_and_spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and the standard deviation if there are at least two, of numbers of which each is
    known; else both are NaN."""
    if not all(map(math.isfinite, values)):
        return math.nan, math.nan
    return fmean(values), stdev(values) if len(values) > 1 else None
