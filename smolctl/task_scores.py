"""The task scores of a comparison: which of them stand side by side, and how far they differ.

A run may have been scored on a task more than once, with a larger `--limit` each time. Of what it
has, one number of questions is shown for each task and way of asking (the split, the context, the
dtype and the device): the largest that all runs share.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

import pandas as pd

from smolctl.stats import Interval, paired
from smollm2.errors import UserError

if TYPE_CHECKING:
    from smolctl.comparison import Arm
    from smolctl.facts import RunFacts

# Scores that agree in these are of the same questions, asked in the same way.
QUESTIONS = ["n", "total", "fingerprint"]
TASK_KEYS = ["task", "metric", "protocol", *QUESTIONS]


@dataclass(frozen=True)
class TaskDifference:
    """How the checkpoints of an arm and of the first one answer the same questions.

    `interval` is over questions, each the mean over an arm's runs: it holds for these checkpoints
    and does not contain the noise of training. None where the records behind a score are gone or
    are not of it, which `problem` says.
    """

    interval: Interval | None
    problem: str = ""


def task_means(arms: Sequence["Arm"]) -> pd.DataFrame:
    """A row for each task, metric and arm: value (mean over runs), std, count, chance."""
    rows = side_by_side(recorded(arms))
    grouped = rows.groupby([*TASK_KEYS, "arm"], sort=False)["value"]
    table = grouped.agg(["mean", "std", "count"]).reset_index()
    chances = rows.groupby(TASK_KEYS, sort=False)["chance"].first().reset_index()
    return table.merge(chances, on=TASK_KEYS, how="left")


def recorded(arms: Sequence["Arm"]) -> pd.DataFrame:
    """Every task score of every run, with its arm and the number of its run."""
    runs = [(arm.name, facts.tasks) for arm in arms for facts in arm.runs]
    return pd.concat(
        [tasks.assign(arm=arm, run=number) for number, (arm, tasks) in enumerate(runs)]
    )


def side_by_side(rows: pd.DataFrame) -> pd.DataFrame:
    """Of the rows of each run one set of questions for each task and way of asking: that which most
    of the runs have, of such the largest; runs without it have another by the same rule."""
    kept = []
    for _, left in rows.groupby(["task", "protocol"], sort=False):
        while not left.empty:
            runs = left.groupby(QUESTIONS, sort=False)["run"].nunique()
            chosen = of_questions(left, max(runs.index, key=lambda key: (runs[key], key[0])))
            kept.append(chosen)
            left = left[~left["run"].isin(chosen["run"])]
    return pd.concat(kept) if kept else rows


def of_questions(rows: pd.DataFrame, questions: tuple[Any, ...]) -> pd.DataFrame:
    return rows[(rows[QUESTIONS] == list(questions)).all(axis=1)]


def unequal_questions(arms: Sequence["Arm"], study: str) -> list[str]:
    """A sentence on each task and way of asking of which some arm has more questions than are
    shown: what it has, what is shown, and what to type."""
    rows = recorded(arms)
    shown = side_by_side(rows)
    sentences = []
    for (task, protocol), all_ in rows.groupby(["task", "protocol"], sort=False):
        largest = max(all_[QUESTIONS].itertuples(index=False, name=None))
        scored = of_questions(all_, largest)
        lacking = all_[~all_["run"].isin(scored["run"])]["arm"].unique()
        if not len(lacking):
            continue
        here = shown[(shown["task"] == task) & (shown["protocol"] == protocol)]
        by_arm = here.drop_duplicates(["arm", *QUESTIONS])
        counts = [f"{n:,} for {arm}" for arm, n in zip(by_arm["arm"], by_arm["n"], strict=True)]
        is_shared = len(here.drop_duplicates(QUESTIONS)) == 1
        extent = f"the {by_arm['n'].iloc[0]:,} that all have" if is_shared else ", ".join(counts)
        n, total, _ = largest
        limit = "" if n == total else f" --limit {n}"
        sentences.append(
            f"{task}, {split_of(str(protocol))}: {n:,} questions were not scored with every run of "
            f"{' and '.join(lacking)}; shown are {extent}. For more: "
            f"smolctl eval {' '.join(lacking)} --tasks {task}{limit} --study {study}"
        )
    return sentences


def split_of(protocol: str) -> str:
    """`validation split` of `lm-eval, 0-shot, validation split, ...`."""
    return protocol.split(", ")[2]


def differences_of(arms: Sequence["Arm"], table: pd.DataFrame) -> list[TaskDifference | None]:
    """The difference of each row of `task_means` to the first arm; None for that itself, or if the
    two were not scored so with as many runs."""
    by_name = {arm.name: arm for arm in arms}
    found: list[TaskDifference | None] = []
    for row in table.to_dict("records"):
        base, arm = arms[0], by_name[row["arm"]]
        scored = [scored_so(one, row) for one in (base, arm)]
        if arm is base or any(len(runs) != row["count"] for runs in scored):
            found.append(None)
            continue
        try:
            found.append(TaskDifference(paired(*(item_means(runs, row) for runs in scored))))
        except UserError as error:
            found.append(TaskDifference(None, str(error)))
    return found


def scores_like(table: pd.DataFrame, row: dict[Any, Any]) -> pd.DataFrame:
    return table[(table[TASK_KEYS] == pd.Series(row)[TASK_KEYS]).all(axis=1)]


def scored_so(arm: "Arm", row: dict[Any, Any]) -> list["RunFacts"]:
    """The runs of an arm that have the score of a row of `task_means`."""
    return [facts for facts in arm.runs if not scores_like(facts.tasks, row).empty]


def item_means(runs: Sequence["RunFacts"], row: dict[Any, Any]) -> list[float]:
    """A value for each question behind a row of `task_means`, the mean over runs."""
    by_run = [item_values(facts, row) for facts in runs]
    return [fmean(values) for values in zip(*by_run, strict=True)]


def item_values(facts: "RunFacts", row: dict[Any, Any]) -> list[float]:
    """What each question adds to the score of a run.

    Raises:
        UserError: the items are gone, or do not add up to the value in eval.csv.
    """
    from smollm2.scores import recorded_items

    own = scores_like(facts.tasks, row).iloc[0]
    scores = recorded_items(facts.run, str(own["items"]), row["n"], row["fingerprint"])
    values = [score.value(row["metric"]) for score in scores]
    if not math.isclose(fmean(values), own["value"], rel_tol=1e-9, abs_tol=1e-12):
        raise UserError(
            f"{row['metric']} of {row['task']} in {facts.name}/eval.csv is {own['value']:g}, and "
            f"its items give {fmean(values):g}: one of them was changed, and no paired difference "
            f"is shown. Score again: {eval_command(facts, row)}"
        )
    return values


def eval_command(facts: "RunFacts", row: dict[Any, Any]) -> str:
    """The `smolctl eval` command that writes a row of eval.csv anew from its items."""
    options = " ".join(["--tasks", row["task"], *eval_options(facts, row)])
    return f"smolctl eval {facts.name} {options} --study {facts.run.study}"


def eval_options(facts: "RunFacts", row: dict[Any, Any]) -> tuple[str, ...]:
    """The options of `smolctl eval`, beside the task, that make a row of eval.csv."""
    limit = () if row["n"] == row["total"] else ("--limit", str(row["n"]))
    dtype = row["protocol"].split(", ")[4]
    return (*limit, *(() if dtype == facts.protocol.dtype else ("--dtype", dtype)))
