"""The tasks: where their rows are, and how a row becomes a question.

Prompts, data sets and splits are those of lm-evaluation-harness 0.4.13, without examples in the
prompt. Adding a task is one function and one entry of `TASKS`.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from smollm2.errors import UserError, did_you_mean
from smollm2.tasks.items import Item, question

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Task:
    """A multiple-choice benchmark.

    Args:
        repo, config: the data set on the hub.
        splits: with public answers; lm-evaluation-harness scores the first.
        columns: what a row must have.
        has_acc_norm: whether accuracy by log-likelihood per character is reported too.
        to_item: makes a question of a row. It may raise what a malformed row provokes (`TypeError`,
            `ValueError`, ...); whoever reads the rows says which row it was.
    """

    name: str
    repo: str
    config: str | None
    splits: tuple[str, ...]
    columns: tuple[str, ...]
    has_acc_norm: bool
    to_item: Callable[[Row], Item]


def hellaswag(row: Row) -> Item:
    scene = row["activity_label"] + ": " + row["ctx_a"] + " " + row["ctx_b"].capitalize()
    endings = [without_tags(ending) for ending in listed(row["endings"])]
    return question(without_tags(scene), endings, whole(row["label"]))


def without_tags(text: str) -> str:
    """The text less WikiHow's bracketed tags; a title's becomes a full stop."""
    text = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return text.replace("  ", " ")


def arc(row: Row) -> Item:
    return question(asked(row["question"]), *lettered(row))


def asked(text: str) -> str:
    return "Question: " + text + "\nAnswer:"


def openbookqa(row: Row) -> Item:
    return question(row["question_stem"], *lettered(row))


def lettered(row: Row) -> tuple[list[str], int]:
    """The choices and the gold index of a row whose answer is a letter or a digit."""
    letters, texts = listed(row["choices"]["label"]), listed(row["choices"]["text"])
    if len(letters) != len(texts):
        raise UserError(f"there are {len(letters)} labels of {len(texts)} choices")
    answer = row["answerKey"].lstrip()
    if answer not in letters:
        raise UserError(f"the label is out of range: answerKey {answer!r} is none of {letters}")
    return texts, letters.index(answer)


def whole(label: Any) -> int:
    """A label that is a whole number or its digits: `int` would make 1 of 1.7 and of True."""
    if type(label) is int or (isinstance(label, str) and re.fullmatch("[0-9]{1,9}", label)):
        return int(label)
    raise ValueError(f"the label is no whole number: {label!r}")


def listed(choices: Any) -> list[str]:
    """`choices`, which must be a list: text would pass for one choice a character."""
    if not isinstance(choices, list):
        raise UserError("the choices are not a list")
    return choices


def piqa(row: Row) -> Item:
    return question(asked(row["goal"]), [row["sol1"], row["sol2"]], whole(row["label"]))


def winogrande(row: Row) -> Item:
    """The options stand in the context; what follows the blank is scored (Trinh and Le 2018)."""
    before, blank, after = row["sentence"].partition("_")
    if not blank:
        raise UserError("the sentence has no blank `_`")
    contexts = before + row["option1"], before + row["option2"]
    return Item(contexts, (" " + after.strip(),) * 2, whole(row["answer"]) - 1)


ARC_EASY = Task(
    name="arc_easy",
    repo="allenai/ai2_arc",
    config="ARC-Easy",
    splits=("test", "validation"),
    columns=("question", "choices", "answerKey"),
    has_acc_norm=True,
    to_item=arc,
)

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            name="hellaswag",
            repo="Rowan/hellaswag",
            config=None,
            splits=("validation",),
            columns=("activity_label", "ctx_a", "ctx_b", "endings", "label"),
            has_acc_norm=True,
            to_item=hellaswag,
        ),
        ARC_EASY,
        replace(ARC_EASY, name="arc_challenge", config="ARC-Challenge"),
        Task(
            name="piqa",
            repo="baber/piqa",
            config=None,
            splits=("validation",),
            columns=("goal", "sol1", "sol2", "label"),
            has_acc_norm=True,
            to_item=piqa,
        ),
        Task(
            name="winogrande",
            repo="allenai/winogrande",
            config="winogrande_xl",
            splits=("validation",),
            columns=("sentence", "option1", "option2", "answer"),
            has_acc_norm=False,
            to_item=winogrande,
        ),
        Task(
            name="openbookqa",
            repo="allenai/openbookqa",
            config="main",
            splits=("test", "validation"),
            columns=("question_stem", "choices", "answerKey"),
            has_acc_norm=True,
            to_item=openbookqa,
        ),
    )
}


def find_task(name: str) -> Task:
    """The task of that name.

    Raises:
        UserError: there is none; the sentence names the nearest.
    """
    if name not in TASKS:
        raise UserError(
            f"Unknown task {name!r}.{did_you_mean(name, list(TASKS))} There are {', '.join(TASKS)}."
        )
    return TASKS[name]
