"""The rows of eval.csv that score a task, and what makes two of them comparable."""

from collections.abc import Mapping
from typing import Any

from smollm2.errors import UserError
from smollm2.runs.conditions import CONDITIONS, TEXT_SUITES
from smollm2.runs.tables import TableFolder

# Rows that agree in WAY ask in the same way; in QUESTIONS, the same questions.
WAY = ["task", *CONDITIONS]
QUESTIONS = ["n", "total", "fingerprint"]
TASK_KEYS = [*WAY, "metric", *QUESTIONS]
Row = dict[str, Any]


def task_scores(tables: TableFolder) -> list[Row]:
    """The rows of eval.csv that are not held-out text; an empty number is NaN, an empty word None.

    Raises:
        UserError: eval.csv is missing or damaged, or a task has an empty cell.
    """
    columns = tables.columns("eval")
    numbers = [i for i, suite in enumerate(columns["suite"]) if suite not in TEXT_SUITES]
    cells = {name: column[numbers].tolist() for name, column in columns.items()}
    rows = [dict(zip(cells, row, strict=True)) for row in zip(*cells.values(), strict=True)]
    for row in rows:
        if any(is_empty(row[name]) for name in ("value", *TASK_KEYS)):
            raise UserError(f"{tables.name}/eval.csv has a task with an empty cell.")
        row |= {"shots": int(row["shots"]), "context": int(row["context"])}
    return rows


def is_empty(cell: Any) -> bool:
    """Whether a cell is an empty word or number."""
    return cell is None or cell != cell


def task_key(row: Mapping[Any, Any]) -> tuple[Any, ...]:
    """What a row has in `TASK_KEYS`."""
    return tuple(row[name] for name in TASK_KEYS)
