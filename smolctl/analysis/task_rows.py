"""The rows of eval.csv that score a task, and what makes two of them comparable."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from smollm2.errors import UserError
from smollm2.runs.conditions import CONDITIONS, TEXT_SUITES
from smollm2.runs.tables import TABLES, TableFolder

# Rows that agree in WAY ask in the same way; in QUESTIONS, the same questions.
WAY = ["task", *CONDITIONS]
QUESTIONS = ["n", "total", "fingerprint"]
TASK_KEYS = [*WAY, "metric", *QUESTIONS]
NONE = pd.DataFrame(columns=list(TABLES["eval"]))


def task_scores(tables: TableFolder) -> pd.DataFrame:
    """The rows of eval.csv that are not held-out text.

    Raises:
        UserError: eval.csv is missing or damaged, or a task has an empty cell.
    """
    if TEXT_SUITES.keys() >= {*tables.columns("eval")["suite"]}:
        return NONE
    scores = tables.table("eval")
    tasks = scores[~scores["suite"].isin(TEXT_SUITES)]
    if tasks[["value", *TASK_KEYS]].isna().any(axis=None):
        raise UserError(f"{tables.name}/eval.csv has a task with an empty cell.")
    return tasks.astype({"shots": int, "context": int})


def task_key(row: Mapping[Any, Any]) -> tuple[Any, ...]:
    """What a row has in `TASK_KEYS`."""
    return tuple(row[name] for name in TASK_KEYS)
