"""How quantizing changes the task scores of an arm."""

from dataclasses import dataclass
from statistics import fmean
from typing import Any, NamedTuple

from smolctl.analysis.arms import Arm
from smolctl.analysis.run_metrics import FinishedRun
from smolctl.analysis.stats import Interval, paired
from smolctl.analysis.task_rows import QUESTIONS, Row, task_key, task_scores
from smollm2.errors import UserError
from smollm2.evaluation.answer_file import recorded_answers
from smollm2.runs.tables import TableFolder


@dataclass(frozen=True)
class TaskChange:
    """The score of a task before and after quantizing, over the runs of an arm that have both.

    Args:
        name: the configuration.
        row: the row of eval.csv of the first run.
        runs: their number; `before` and `after` are means over them.
        change: over questions, each the mean over runs, so without the noise of training.
    """

    arm: str
    name: str
    row: Row
    runs: int
    before: float
    after: float
    change: Interval


class PairedItems(NamedTuple):
    """A row of eval.csv, and what each question contributes to it before and after quantizing."""

    row: Row
    before: list[float]
    after: list[float]


Key = tuple[Any, ...]  # the name of a configuration and a `task_key`


def task_changes(arm: Arm, notes: list[str]) -> list[TaskChange]:
    """The changes over an arm's runs whose quantized models answered the same questions in the
    same way.

    Args:
        notes: receives a sentence per model whose scores cannot be read.
    """
    found: dict[Key, list[PairedItems]] = {}
    for finished in arm.runs:
        for folder in sorted(finished.run.path.glob("quantized/[!.]*/")):
            tables = TableFolder(folder)
            if not (folder / "eval.csv").exists():
                continue
            try:
                for items in common_items(finished, tables):
                    key = (tables.name, *task_key(items.row))
                    found.setdefault(key, []).append(items)
            except (UserError, OSError, ValueError, KeyError) as error:
                notes.append(f"The tasks of {finished.name}+{tables.name} are excluded: {error}")
    changes = []
    for (name, *_), runs in most_shared(found).items():
        before = [fmean(values) for values in zip(*(run.before for run in runs), strict=True)]
        after = [fmean(values) for values in zip(*(run.after for run in runs), strict=True)]
        scores = fmean(before), fmean(after), paired(before, after)
        changes.append(TaskChange(arm.name, name, runs[0].row, len(runs), *scores))
    return changes


def most_shared(found: dict[Key, list[PairedItems]]) -> dict[Key, list[PairedItems]]:
    """Per configuration, task and metric the set of questions that most runs share; the largest of
    equals."""

    def rank(key: Key) -> tuple[int, int]:
        return len(found[key]), key[-len(QUESTIONS)]

    best: dict[Key, Key] = {}
    for key in found:
        same = key[: -len(QUESTIONS)]
        if same not in best or rank(key) > rank(best[same]):
            best[same] = key
    return {key: found[key] for key in best.values()}


def common_items(finished: FinishedRun, tables: TableFolder) -> list[PairedItems]:
    """The rows of a quantized model's eval.csv that the run has too.

    Raises:
        UserError: a file is missing or damaged.
    """
    theirs = {task_key(row): row for row in task_scores(tables)}
    by_questions: dict[tuple[Any, ...], list[Row]] = {}
    for own in finished.tasks:
        if row := theirs.get(task_key(own)):
            key = str(own["items"]), str(row["items"]), row["n"], row["fingerprint"]
            by_questions.setdefault(key, []).append(row)
    found = []
    for (name_before, name, n, fingerprint), rows in by_questions.items():
        before = recorded_answers(finished.run, name_before, n, fingerprint)
        after = recorded_answers(tables, name, n, fingerprint)
        for row in rows:  # which differ in the metric
            values = (answers.values(row["metric"]) for answers in (before, after))
            found.append(PairedItems(row, *values))
    return found
