"""quantize.csv of a run, read and checked."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from smollm2.errors import UserError
from smollm2.quantize.quant_config import BF16, QuantConfig
from smollm2.runs.conditions import FEWEST_DOCUMENTS
from smollm2.runs.quantize_status import Status
from smollm2.runs.tables import TABLES, WORDS, TableFolder

if TYPE_CHECKING:
    import pandas as pd

ERRORS = ("loss_delta_stderr", "kl_mean_stderr", "top1_agreement_stderr")  # over documents
LARGEST_KL = 1e4  # nats/token, far beyond that of any two models
NUMBERS = tuple(column for column in TABLES["quantize"] if column not in WORDS["quantize"])


def problem_in(row: Mapping[str, Any]) -> str:
    """What cannot be in a row that was measured; empty if nothing is wrong."""
    if not math.isnan(row["kl_mean"]) and not 0 <= row["kl_mean"] <= LARGEST_KL:
        return f"with a kl_mean of {row['kl_mean']:g}"
    if math.isnan(row["loss_delta"]):
        return "" if math.isnan(row["kl_mean"]) else "with a kl_mean and no loss_delta"
    lacking = [name for name in ("n", "clusters") if math.isnan(row[name])]
    return f"with a loss_delta and no {lacking[0]}" if lacking else ""


def read_rows(run: TableFolder) -> "pd.DataFrame | None":
    """quantize.csv of a run: `NUMBERS` as floats, NaN for an empty cell and for an error over fewer
    documents than `FEWEST_DOCUMENTS`; words as strings. None if there is no such file.

    Raises:
        UserError: a column is missing, a line is cut off, a number is malformed, or two rows are
            of one configuration.
    """
    if not (run.path / "quantize.csv").exists():
        return None
    run.columns("quantize")  # raises if the file as a whole is incomplete
    rows = run.rows("quantize")
    for row in rows:
        for column in NUMBERS:
            row[column] = number_in(row[column], f"{run.name}/quantize.csv has a {column}")
        if not row["name"] or math.isnan(row["bits"]):
            raise UserError(f"{run.name}/quantize.csv has a row without a name or bits.")
        if row["name"] != BF16:
            QuantConfig.of(row["name"])
        if problem := problem_in(row):
            raise UserError(f"{run.name}/quantize.csv has a row of {row['name']} {problem}.")
        if row["clusters"] < FEWEST_DOCUMENTS:
            row |= dict.fromkeys(ERRORS, math.nan)
        if row["status"] not in list(Status):
            raise UserError(f"{run.name}/quantize.csv has an unknown status: {row['status']!r}.")
    names = [row["name"] for row in rows]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"{run.name}/quantize.csv has two rows of {twice}.")
    import pandas as pd  # takes 0.2 s, and most runs were not quantized

    return pd.DataFrame(rows, columns=list(TABLES["quantize"]))


def number_in(cell: str, start: str) -> float:
    """The finite number in a cell; NaN if it is empty.

    Raises:
        UserError: anything else; the sentence begins with `start`.
    """
    if not cell:
        return math.nan
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{start} that is not a number: {cell!r}.")
    return value


def with_error(row: Mapping[str, Any], column: str, form: str) -> str:
    """`+0.0123 ± 0.0004`; without an error where there are too few documents."""
    error = row[f"{column}_stderr"]
    return f"{row[column]:{form}}" + ("" if error is None else f" ± {error:.4f}")
