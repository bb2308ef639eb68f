"""The tasks of lm-evaluation-harness: where their rows are, and how a row becomes a question.

Prompts, data sets and splits are those of version 0.4.13, without examples in the prompt.
"""

import re
from dataclasses import replace
from typing import Any

from smollm2.errors import UserError
from smollm2.evaluation.tasks.items import Item, question
from smollm2.evaluation.tasks.task import Row, Task


def hellaswag(row: Row) -> Item:
    """HellaSwag: endings of a described scene."""
    scene = row["activity_label"] + ": " + row["ctx_a"] + " " + row["ctx_b"].capitalize()
    endings = [without_tags(ending) for ending in require_list(row["endings"])]
    return question(without_tags(scene), endings, integer(row["label"]))


def without_tags(text: str) -> str:
    """Remove WikiHow's bracketed tags; the tag of a title becomes a full stop."""
    text = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return text.replace("  ", " ")


def arc(row: Row) -> Item:
    """ARC: answers to a question."""
    return question(prompt(row["question"]), *lettered(row))


def prompt(text: str) -> str:
    """The question in the words of lm-evaluation-harness."""
    return "Question: " + text + "\nAnswer:"


def openbookqa(row: Row) -> Item:
    """OpenBookQA: endings of a sentence."""
    return question(row["question_stem"], *lettered(row))


def lettered(row: Row) -> tuple[list[str], int]:
    """The choices and the gold index of a row whose answer is a letter or a digit."""
    letters, texts = require_list(row["choices"]["label"]), require_list(row["choices"]["text"])
    if len(letters) != len(texts):
        raise UserError(f"there are {len(letters)} labels for {len(texts)} choices")
    answer = row["answerKey"].lstrip()
    if answer not in letters:
        raise UserError(f"the label is out of range: answerKey {answer!r} is not one of {letters}")
    return texts, letters.index(answer)


def integer(label: Any) -> int:
    """A label that is a whole number or its digits; `int` would also take 1.7 and True."""
    if type(label) is int or (isinstance(label, str) and re.fullmatch("[0-9]{1,9}", label)):
        return int(label)
    raise ValueError(f"the label is not a whole number: {label!r}")


def require_list(choices: Any) -> list[str]:
    """`choices`, which must be a list: a string would pass as one choice per character."""
    if not isinstance(choices, list):
        raise UserError("the choices are not a list")
    return choices


def piqa(row: Row) -> Item:
    """PIQA: ways to reach a goal."""
    return question(prompt(row["goal"]), [row["sol1"], row["sol2"]], integer(row["label"]))


def winogrande(row: Row) -> Item:
    """The options are in the context; the text after the blank is scored (Trinh and Le 2018)."""
    before, blank, after = row["sentence"].partition("_")
    if not blank:
        raise UserError("the sentence has no blank `_`")
    contexts = before + row["option1"], before + row["option2"]
    return Item(contexts, (" " + after.strip(),) * 2, integer(row["answer"]) - 1)


ARC_EASY = Task(
    name="arc_easy",
    repo="allenai/ai2_arc",
    config="ARC-Easy",
    splits=("test", "validation"),
    columns=("question", "choices", "answerKey"),
    to_item=arc,
)

LM_EVAL_TASKS = (
    Task(
        name="hellaswag",
        repo="Rowan/hellaswag",
        config=None,
        splits=("validation",),
        columns=("activity_label", "ctx_a", "ctx_b", "endings", "label"),
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
        to_item=piqa,
    ),
    Task(
        name="winogrande",
        repo="allenai/winogrande",
        config="winogrande_xl",
        splits=("validation",),
        columns=("sentence", "option1", "option2", "answer"),
        metrics=("acc", "bits_per_byte"),
        to_item=winogrande,
    ),
    Task(
        name="openbookqa",
        repo="allenai/openbookqa",
        config="main",
        splits=("test", "validation"),
        columns=("question_stem", "choices", "answerKey"),
        to_item=openbookqa,
    ),
)
