"""Downstream tasks: scores, and paired differences over the questions."""

import math
from typing import Any

from smolctl.analysis.comparison import Comparison
from smolctl.analysis.task_rows import TASK_KEYS, Row, is_empty, task_key
from smolctl.analysis.task_scores import TaskDifference
from smolctl.report.document import Block, Section, Table, bullets
from smolctl.report.evidence import Evidence
from smolctl.report.sections.per_study import per_study
from smolctl.report.wording import bounds_text
from smolctl.units import of_total
from smollm2.runs.conditions import describe_setting

SOURCE = (
    "Prompts and scores are those of lm-evaluation-harness with 0 shots; published scores of "
    "SmolLM2 are lighteval's and are not comparable with these."
)
Scores = dict[str, tuple[Row, TaskDifference | None]]


def tasks_section(evidence: Evidence) -> Section | None:
    """The task scores of every study, and how they differ between arms."""

    def blocks(study: Comparison) -> list[Block | None]:
        if not study.tasks:
            return []
        return [
            bullets([*on_chance(study), SOURCE]),
            tasks_table(study),
            task_differences_table(study),
        ]

    return per_study(evidence, "Downstream tasks", blocks)


def tasks_table(comparison: Comparison) -> Table:
    """Task scores: a row per set of questions and metric."""
    rows = []
    for key, scores in task_rows(comparison):
        counts = {score["count"] for score, _ in scores.values()}
        chance = next(iter(scores.values()))[0]["chance"]
        cells = {arm: score_cell(score, len(counts) > 1) for arm, (score, _) in scores.items()}
        rows.append(
            (
                *question_cells(key),
                " or ".join(map(str, sorted(counts))),
                "–" if is_empty(chance) else f"{chance:.4f}",
                *(cells.get(arm.name, "–") for arm in comparison.arms),
            )
        )
    return Table(
        "Tasks (secondary): mean ± standard deviation over runs",
        ("metric", "how", "questions", "runs", "chance", *(a.name for a in comparison.arms)),
        rows,
        n_words=2,
    )


def task_differences_table(comparison: Comparison) -> Table:
    """How far the arms are from the first one, for each row of `tasks_table` where one was scored
    as the first was."""
    rows = []
    for key, scores in task_rows(comparison):
        cells = {arm: difference_text(found) for arm, (_, found) in scores.items()}
        row = [cells.get(arm.name, "–") for arm in comparison.others]
        if set(row) - {"–"}:
            rows.append((*question_cells(key), *row))
    return Table(
        f"Paired differences from {comparison.base.name} over the questions, for these "
        "checkpoints: the intervals do not contain the noise of training",
        ("metric", "how", "questions", *(arm.name for arm in comparison.others)),
        rows,
        n_words=2,
    )


def task_rows(comparison: Comparison) -> list[tuple[tuple[Any, ...], Scores]]:
    """By `TASK_KEYS`, task by task: the score of each arm that has it, by the arm's name."""
    found: dict[tuple[Any, ...], Scores] = {}
    for row, difference in zip(comparison.tasks, comparison.task_differences, strict=True):
        found.setdefault(task_key(row), {})[row["arm"]] = (row, difference)
    return sorted(found.items(), key=lambda item: item[0][0])


def question_cells(key: tuple[Any, ...]) -> tuple[str, str, str]:
    """What was asked, how, and how many questions of how many."""
    row = dict(zip(TASK_KEYS, key, strict=True))
    extent = of_total(row["n"], row["total"])
    return f"{row['task']} {row['metric']}", describe_setting(row), extent


def score_cell(score: Row, with_count: bool) -> str:
    """`0.2482 ± 0.0021`, with the number of runs where arms differ in that."""
    text = f"{score['mean']:.4f}"
    if score["std"] == score["std"]:
        text += f" ± {score['std']:.4f}"
    return text + (f" ({score['count']})" if with_count else "")


def difference_text(found: TaskDifference | None) -> str:
    """`-0.0017 (-0.0142 to +0.0108)`, or `–` where the two were not scored alike."""
    if found is None:
        return "–"
    if found.interval is None:
        return "not compared"
    return f"{found.interval.mean:+.4f}{bounds_text(found.interval.interval, '+.4f')}"


def guessing_error(row: Row) -> float:
    """The standard error of the accuracy of a run that guesses."""
    return math.sqrt(row["chance"] * (1 - row["chance"]) / row["n"])


def on_chance(comparison: Comparison) -> list[str]:
    """How many accuracies guessing could explain; none where no task was scored."""
    rows = [
        row for row in comparison.tasks if row["metric"] == "acc" and not is_empty(row["chance"])
    ]
    if not rows:
        return []
    above = sum(row["mean"] > row["chance"] + 2 * guessing_error(row) for row in rows)
    below = sum(row["mean"] < row["chance"] - 2 * guessing_error(row) for row in rows)
    text = (
        f"{above} of {len(rows)} accuracies lie more than two standard errors of a run above what "
        "guessing gives (chance), where guessing would put one in forty"
    )
    if below:
        text += f"; {below} lie as far below it, as where a model likes short answers best"
    if above + below < len(rows):
        text += (
            ". The others cannot be told from guessing by so many questions; the bits per byte of "
            "the right answers tell models apart sooner"
        )
    return [f"{text}."]
