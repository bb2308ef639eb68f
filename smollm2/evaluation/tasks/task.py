"""What a task declares."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from smollm2.evaluation.tasks.items import Item

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Task:
    """A benchmark.

    Args:
        repo, config: the data set on the hub.
        splits: with public answers; the suite scores the first.
        columns: what a row must have.
        to_item: makes a question of a row. It may raise what a malformed row provokes (`TypeError`,
            `ValueError`, ...); the reader of the rows adds which row it was.
        suite: whose prompts and rules these are.
        shots: examples in the prompts that `to_item` makes.
        output_type: what is asked of the model, in the words of lm-evaluation-harness.
        metrics: of `multiple_choice.summarize`, in order. acc_norm normalizes the log-likelihood of
            a choice by its length.
    """

    name: str
    repo: str
    config: str | None
    splits: tuple[str, ...]
    columns: tuple[str, ...]
    to_item: Callable[[Row], Item]
    suite: str = "lm-eval"
    shots: int = 0
    output_type: str = "multiple_choice"
    metrics: tuple[str, ...] = ("acc", "acc_norm", "bits_per_byte")
