"""Scores runs on held-out text and tasks, for `eval` and `study`."""

import contextlib
import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from smolctl.studies.models import Model
from smolctl.studies.tokens import text_to_score, tokens_of
from smolctl.talk import progress, warn
from smollm2.data import TokenData, window_count
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
        may_be_other: whether `source` may be another text than the run's own.

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
        may_be_other: bool = False,
    ) -> None:
        run = model.run
        self.model, self.batch_size = model, batch_size
        self.machine = model.machine(device, dtype)
        self.tokenizer = load_run_tokenizer(run)
        self.data: TokenData | None = None
        if with_text:
            self.data = text_to_score(run, source) if may_be_other else tokens_of(run, source, None)

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
        for split in splits:
            assert self.data is not None
            yield self.score_split(target, self.data, split, n_tokens, spread)
        for task in asked:
            what = f"{self.model.label} {task.task.name}, questions"
            with counting(what, len(task.items)) as on_progress:
                yield evaluate_task(
                    target,
                    self.tokenizer,
                    task,
                    batch_size=self.batch_size,
                    on_progress=on_progress,
                )

    def score_split(
        self,
        target: EvalTarget,
        data: TokenData,
        split: str,
        n_tokens: int | None = None,
        spread: bool = False,
        seq_len: int | None = None,
    ) -> list[dict[str, Any]]:
        """Score a split of a text, showing progress; see `evaluate_text`."""
        tokens, label = getattr(data, split), self.model.label
        windows = window_count(tokens, seq_len or window_length(target.run, tokens), n_tokens)
        with counting(f"{label} {split} of {data.source}, windows", windows) as on_progress:
            return evaluate_text(
                target,
                data,
                split,
                n_tokens=n_tokens,
                spread=spread,
                seq_len=seq_len,
                batch_size=self.batch_size,
                on_progress=on_progress,
            )


@contextlib.contextmanager
def counting(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar, and the function that sets how many of `total` are done."""
    with progress() as show:
        yield lambda done: show(what, done, total)
