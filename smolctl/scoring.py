"""Scoring runs on held-out text and tasks with a progress bar, for `eval` and `study`."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smollm2.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from smolctl.models import Model
    from smollm2.runs import Run
    from smollm2.scores import Subject
    from smollm2.tasks import TaskItems

SPLITS = ("test", "validation")


def task_names(text: str) -> list[str]:
    """The tasks and splits that `text` lists with commas, each once; `all` is every task.

    Raises:
        UserError: one that there is not.
    """
    from smollm2.tasks import TASKS

    tasks = list(TASKS)
    names: list[str] = []
    for name in filter(None, (part.strip() for part in text.split(","))):
        if name not in (*SPLITS, *tasks, "all"):
            known = [*SPLITS, *tasks, "all"]
            raise UserError(
                f"Unknown task {name!r}.{did_you_mean(name, known)} There are {', '.join(known)}."
            )
        names += tasks if name == "all" else [name]
    if not names:
        raise UserError("Name a task: --tasks hellaswag,arc_easy, for example.")
    return list(dict.fromkeys(names))


def questions(tasks: str, data_dir: Path | None, limit: int | None) -> "list[TaskItems]":
    """The questions of those of `tasks` that are multiple-choice tasks; see `task_names`.

    Raises:
        UserError: an unknown task, or data that cannot be had or read.
    """
    from smolctl.console import warn
    from smollm2.tasks import TASKS, load_items

    names = [name for name in task_names(tasks) if name in TASKS]
    loaded = [load_items(TASKS[name], data_dir, limit) for name in names]
    for found in loaded:
        if not found.is_usual_split:
            warn(
                f"{found.task.name} is scored on its {found.split} split; lm-evaluation-harness "
                f"scores {found.task.splits[0]}."
            )
    return loaded


class Scorer:
    """A model that is to be scored; that it can be is found out at once.

    Args:
        with_text: whether held-out text will be scored.
        source: of its tokens, where they are no longer in the cache.

    Raises:
        UserError: its weights, its tokenizer or its tokens are missing, damaged or others, or the
            device or dtype is not to be had.
    """

    def __init__(
        self,
        model: "Model",
        *,
        device: str | None = None,
        dtype: str | None = None,
        batch_size: int | None = None,
        with_text: bool = False,
        source: str | None = None,
    ) -> None:
        from smolctl.tokens import tokens_of
        from smollm2.runs import load_run_tokenizer

        run = model.run
        self.model, self.batch_size = model, batch_size
        self.machine = machine(run, device, dtype)
        self.tokenizer = load_run_tokenizer(run)
        self.data = tokens_of(run, source, None) if with_text else None

    def of(self, model: "Model") -> "Scorer":
        """The same for another model of the run."""
        other = copy.copy(self)
        other.model = model
        return other

    def load(self) -> "Subject":
        """The model, to be scored."""
        from smollm2.scores import Subject

        model = self.model
        return Subject(model.run, model.tables, model.load(*self.machine), model.weights)

    def score(
        self,
        subject: "Subject",
        splits: list[str],
        asked: "list[TaskItems]",
        n_tokens: int | None = None,
        spread: bool = False,
    ) -> Iterator[list[dict[str, Any]]]:
        """The rows of eval.csv of one thing after another, with a progress bar for each.

        Args:
            n_tokens, spread: of each split; see `evaluate_text`.
        """
        from smolctl.console import counting
        from smollm2.data import window_count
        from smollm2.scores import evaluate_task, evaluate_text, window_length

        model = self.model
        for split in splits:
            assert self.data is not None
            tokens = getattr(self.data, split)
            windows = window_count(tokens, window_length(model.run, tokens), n_tokens)
            with counting(f"{model.label} {split}, windows", windows) as on_progress:
                yield evaluate_text(
                    subject,
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
                    subject,
                    self.tokenizer,
                    task,
                    batch_size=self.batch_size,
                    on_progress=on_progress,
                )


def require_machine(device: str | None, dtype: str | None) -> None:
    """Raise `UserError` if one of them is not to be had, before a target is imported in vain."""
    from smollm2.device import resolve_device, resolve_dtype

    resolve_dtype(dtype, resolve_device(device))


def machine(run: "Run", device: str | None, dtype: str | None) -> tuple[str, str]:
    """The device and dtype to use a run with: as asked, else the run's own where it can be."""
    from smolctl.console import warn
    from smollm2.device import resolve_device, resolve_dtype

    own = run.protocol
    if device is not None:
        device = resolve_device(device)
    else:
        try:
            device = resolve_device(own.device)
        except UserError:
            device = resolve_device(None)
            warn(f"{run.name} is a run of {own.device}; here it runs on {device}.")
    return device, resolve_dtype(dtype or own.dtype, device)
