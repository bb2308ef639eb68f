"""Scoring runs on held-out text and tasks with a progress bar, for `eval` and `study`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from smollm2.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from smollm2.model import SmolLM2
    from smollm2.runs import Run
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
    from smollm2.tasks import TASKS, load_items

    names = [name for name in task_names(tasks) if name in TASKS]
    return [load_items(TASKS[name], data_dir, limit) for name in names]


class Scorer:
    """A run with its model loaded, to be scored on one thing after another."""

    def __init__(
        self, run: "Run", device: str | None, dtype: str | None, batch_size: int | None
    ) -> None:
        from smollm2.runs import load_model

        self.run, self.batch_size = run, batch_size
        self.model: SmolLM2 = load_model(run, *machine(run, device, dtype))

    def text(self, split: str, n_tokens: int | None, source: str | None) -> list[dict[str, Any]]:
        from smolctl.console import counting
        from smolctl.tokens import tokens_of
        from smollm2.data import window_count
        from smollm2.scores import evaluate_text

        data = tokens_of(self.run, source, None)
        windows = window_count(getattr(data, split), self.run.protocol.seq_len, n_tokens)
        with counting(f"{self.run.name} {split}, windows", windows) as on_progress:
            return evaluate_text(
                self.run,
                self.model,
                data,
                split,
                n_tokens=n_tokens,
                batch_size=self.batch_size,
                on_progress=on_progress,
            )

    def task(self, asked: "TaskItems") -> list[dict[str, Any]]:
        from smolctl.console import counting
        from smollm2.runs import load_run_tokenizer
        from smollm2.scores import evaluate_task

        what = f"{self.run.name} {asked.task.name}, questions"
        with counting(what, len(asked.items)) as on_progress:
            return evaluate_task(
                self.run,
                self.model,
                load_run_tokenizer(self.run),
                asked,
                batch_size=self.batch_size,
                on_progress=on_progress,
            )


def machine(run: "Run", device: str | None, dtype: str | None) -> tuple[str, str]:
    """The device and dtype to score a run with: as asked, else the run's own where it can be."""
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
            warn(f"{run.name} was trained on {own.device}; it is scored on {device}.")
    return device, resolve_dtype(dtype or own.dtype, device)
