"""The task scores of a comparison: which rows are shown side by side, and how much they differ.

A run may have been scored on a task several times, on more questions each time. For each task and
set of conditions the comparison shows one number of questions: the largest that all runs share.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from statistics import fmean
from typing import TYPE_CHECKING, Any

from smolctl.analysis.arms import Arm
from smolctl.analysis.run_metrics import FinishedRun
from smolctl.analysis.stats import Interval, paired
from smolctl.analysis.task_rows import QUESTIONS, TASK_KEYS, WAY, Row, task_key
from smolctl.command_line import command, results_of
from smollm2.errors import UserError
from smollm2.evaluation.answer_file import recorded_answers
from smollm2.evaluation.answers import Answers

if TYPE_CHECKING:
    import pandas as pd

    from smollm2.runs.run import Run

ReadAnswers = Callable[["Run", str, int, str], Answers]  # see `recorded_answers`


@dataclass(frozen=True)
class TaskDifference:
    """How the checkpoints of an arm and of the first arm answer the same questions.

    Args:
        interval: over questions, each the mean over an arm's runs. It holds for these checkpoints
            and excludes the noise of training. None if there is a `problem`.
        problem: a sentence: the scores question by question are gone, or do not match eval.csv.
    """

    interval: Interval | None
    problem: str = ""


def task_means(arms: Sequence[Arm]) -> list[Row]:
    """A row per task, conditions, metric and arm: mean, std and count over runs, and chance."""
    recorded = scores_of_runs(arms)
    if recorded is None:
        return []
    rows = side_by_side(recorded)
    grouped = rows.groupby([*TASK_KEYS, "arm"], sort=False)["value"]
    table = grouped.agg(["mean", "std", "count"]).reset_index()
    chances = rows.groupby(TASK_KEYS, sort=False)["chance"].first().reset_index()
    found = table.merge(chances, on=TASK_KEYS, how="left").to_dict("records")
    return [{str(name): cell for name, cell in row.items()} for row in found]


def scores_of_runs(arms: Sequence[Arm]) -> "pd.DataFrame | None":
    """The task scores of all runs, with the columns `arm` and `run` (a number); None if there are
    none."""
    runs = enumerate((arm.name, finished.tasks) for arm in arms for finished in arm.runs)
    rows = [row | {"arm": arm, "run": run} for run, (arm, tasks) in runs for row in tasks]
    if not rows:
        return None
    import pandas as pd  # takes 0.2 s, and many studies score no tasks

    return pd.DataFrame(rows)


def side_by_side(rows: "pd.DataFrame") -> "pd.DataFrame":
    """One set of questions per run and `WAY`: the one that most runs have, the largest of equals.
    Runs without it get another by the same rule."""
    kept: list[int] = []
    for _, left in rows.groupby(WAY, sort=False):
        while not left.empty:
            runs = left.groupby(QUESTIONS, sort=False)["run"].nunique()
            chosen = of_questions(left, max(runs.index, key=lambda key: (runs[key], key[0])))
            kept.extend(chosen.index)
            left = left[~left["run"].isin(chosen["run"])]
    return rows.loc[kept]


def of_questions(rows: "pd.DataFrame", questions: tuple[Any, ...]) -> "pd.DataFrame":
    """The rows that score these `QUESTIONS`."""
    return rows[(rows[QUESTIONS] == list(questions)).all(axis=1)]


def unequal_questions(arms: Sequence[Arm]) -> list[str]:
    """A sentence per `WAY` in which some run answered more questions than are shown: what is
    missing, what is shown, and what to type."""
    rows, run = scores_of_runs(arms), arms[0].runs[0].run
    if rows is None:
        return []
    study, results = run.study, results_of(run)
    shown = side_by_side(rows)
    sentences = []
    for way, all_ in rows.groupby(WAY, sort=False):
        largest = max(all_[QUESTIONS].itertuples(index=False, name=None))
        scored = of_questions(all_, largest)
        lacking = all_[~all_["run"].isin(scored["run"])]["arm"].unique()
        if not len(lacking):
            continue
        here = shown[(shown[WAY] == list(way)).all(axis=1)]
        by_arm = here.drop_duplicates(["arm", *QUESTIONS])
        counts = [f"{n:,} for {arm}" for arm, n in zip(by_arm["arm"], by_arm["n"], strict=True)]
        is_shared = len(here.drop_duplicates(QUESTIONS)) == 1
        extent = f"the {by_arm['n'].iloc[0]:,} that all have" if is_shared else ", ".join(counts)
        n, total, _ = largest
        limit = () if n == total else ("--limit", str(n))
        task, split = (all_[name].iloc[0] for name in ("task", "split"))
        sentences.append(
            f"{task}, {split} split: {n:,} questions were not scored with every run of "
            f"{' and '.join(lacking)}; shown are {extent}. For more: "
            f"{command('eval', *lacking, '--tasks', task, *limit, study=study, results=results)}"
        )
    return sentences


def differences_of(arms: Sequence[Arm], table: Sequence[Row]) -> list[TaskDifference | None]:
    """The difference between each row of `task_means` and the first arm; None for the first arm
    itself, or if different numbers of runs were scored this way."""
    by_name = {arm.name: arm for arm in arms}
    # Every metric needs the same items, and every arm the means of the first.
    answers = lru_cache(maxsize=2 * max(len(arm.runs) for arm in arms))(recorded_answers)

    @cache
    def means(arm: str, key: tuple[Any, ...]) -> list[float]:
        row = dict(zip(TASK_KEYS, key, strict=True))
        return item_means(scored_like(by_name[arm], row), row, answers)

    found: list[TaskDifference | None] = []
    for row in table:
        base, arm = arms[0], by_name[row["arm"]]
        scored = [scored_like(one, row) for one in (base, arm)]
        if arm is base or any(len(runs) != row["count"] for runs in scored):
            found.append(None)
            continue
        try:
            key = task_key(row)
            found.append(TaskDifference(paired(means(base.name, key), means(arm.name, key))))
        except UserError as error:
            found.append(TaskDifference(None, str(error)))
    return found


def scored_like(arm: Arm, row: Row) -> list[FinishedRun]:
    """The runs of an arm that have the score of a row of `task_means`."""
    return [finished for finished in arm.runs if task_key(row) in finished.tasks_by_key]


def item_means(runs: Sequence[FinishedRun], row: Row, answers: ReadAnswers) -> list[float]:
    """The mean over runs of each question behind a row of `task_means`."""
    by_run = [item_values(finished, row, answers) for finished in runs]
    return [fmean(values) for values in zip(*by_run, strict=True)]


def item_values(finished: FinishedRun, row: Row, answers: ReadAnswers) -> list[float]:
    """What each question contributes to the score of a run.

    Args:
        answers: `recorded_answers`, or a cache of it.

    Raises:
        UserError: the items are gone, or do not add up to the value in eval.csv.
    """
    own = finished.tasks_by_key[task_key(row)]
    found = answers(finished.run, str(own["items"]), row["n"], row["fingerprint"])
    values = found.values(row["metric"])
    if not math.isclose(fmean(values), own["value"], rel_tol=1e-9, abs_tol=1e-12):
        raise UserError(
            f"{row['metric']} of {row['task']} in {finished.name}/eval.csv is {own['value']:g}, "
            f"and its items give {fmean(values):g}: one of the two was changed, so no paired "
            f"difference is shown. Score again: {eval_command(finished, row)}"
        )
    return values


def eval_command(finished: FinishedRun, row: Row) -> str:
    """The `smolctl eval` command that rewrites a row of eval.csv from its items."""
    words = ("eval", finished.name, "--tasks", row["task"], *eval_options(finished, row))
    return command(*words, study=finished.run.study, results=results_of(finished.run))


def eval_options(finished: FinishedRun, row: Row, *, is_quantized: bool = False) -> tuple[str, ...]:
    """The options of `smolctl eval` that make a row of eval.csv, without the task.

    Args:
        is_quantized: whether the row is of a quantized model, whose dtype may by default be bf16
            where that of the run is not.
    """
    limit = () if row["n"] == row["total"] else ("--limit", str(row["n"]))
    own = finished.protocol.dtype
    is_default = row["dtype"] == own and not (is_quantized and own != "bfloat16")
    return limit if is_default else (*limit, "--dtype", row["dtype"])
