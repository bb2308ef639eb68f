"""Scores runs on held-out text and tasks, for `eval` and `study`."""

import contextlib
import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from smolctl.studies.models import Model
from smolctl.studies.tokens import tokens_of
from smolctl.talk import progress, warn
from smollm2.data import window_count
from smollm2.evaluation.records import EvalTarget, evaluate_task, evaluate_text, window_length
from smollm2.evaluation.tasks import TASKS, TaskItems, load_items, task_names
from smollm2.runs.load_run import load_run_tokenizer


def questions(tasks: str, data_dir: Path | None, limit: int | None) -> list[TaskItems]:
    """The questions of the multiple-choice tasks in `tasks`; see `task_names`.

    Raises:
        UserError: an unknown task, or data that is missing or cannot be read.
    """
    names = [name for name in task_names(tasks) if name in TASKS]
    loaded = [load_items(TASKS[name], data_dir, limit) for name in names]
    for found in loaded:
        if not found.is_usual_split:
            task = found.task
            warn(
                f"{task.name} is scored on its {found.split} split; {task.suite} scores "
                f"{task.splits[0]}."
            )
    return loaded


class Scorer:
    """A model to score. Whether it can be scored is checked when it is created.

    Args:
        device, dtype: by default those of `machine_for`.
        batch_size: see `evaluate_text` and `evaluate_task`.
        with_text: whether held-out text will be scored.
        source: the corpus of the run, in case its tokens are no longer in the cache.

    Raises:
        UserError: its weights, tokenizer or tokens are missing, damaged or not the run's, or the
            device or dtype is not available.
    """

    def __init__(
        self,
        model: Model,
        *,
        device: str | None = None,
        dtype: str | None = None,
        batch_size: int | None = None,
        with_text: bool = False,
        source: str | None = None,
    ) -> None:
        run = model.run
        self.model, self.batch_size = model, batch_size
        self.machine = model.machine(device, dtype)
        self.tokenizer = load_run_tokenizer(run)
        self.data = tokens_of(run, source, None) if with_text else None

    def of(self, model: Model) -> "Scorer":
        """The scorer of another model of the run."""
        other = copy.copy(self)
        other.model = model
        return other

    def load(self) -> EvalTarget:
        """Load the weights."""
        model = self.model
        return EvalTarget(model.run, model.tables, model.load(*self.machine), model.weights)

    def score(
        self,
        target: EvalTarget,
        splits: list[str],
        asked: list[TaskItems],
        n_tokens: int | None = None,
        spread: bool = False,
    ) -> Iterator[list[dict[str, Any]]]:
        """Score splits, then tasks, showing progress; yield the rows of eval.csv of each.

        Args:
            n_tokens, spread: for each split; see `evaluate_text`.
        """
        model = self.model
        for split in splits:
            assert self.data is not None
            tokens = getattr(self.data, split)
            windows = window_count(tokens, window_length(model.run, tokens), n_tokens)
            with counting(f"{model.label} {split}, windows", windows) as on_progress:
                yield evaluate_text(
                    target,
                    self.data,
                    split,
                    n_tokens=n_tokens,
                    spread=spread,
                    batch_size=self.batch_size,
                    on_progress=on_progress,
                )
        for task in asked:
            what = f"{model.label} {task.task.name}, questions"
            with counting(what, len(task.items)) as on_progress:
                yield evaluate_task(
                    target,
                    self.tokenizer,
                    task,
                    batch_size=self.batch_size,
                    on_progress=on_progress,
                )


@contextlib.contextmanager
def counting(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar, and the function that sets how many of `total` are done."""
    with progress() as show:
        yield lambda done: show(what, done, total)
