"""The questions of a task, from a folder of JSONL files or from the hub."""

import gzip
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, cast

from smollm2.data.hub import require_on_hub
from smollm2.data.lines import numbered_lines
from smollm2.errors import UserError, did_you_mean, first_few
from smollm2.evaluation.tasks.items import Item, items_fingerprint
from smollm2.evaluation.tasks.task import Task
from smollm2.parse import parse_json

ENDINGS = (".jsonl", ".jsonl.gz")
WITHOUT_HUB = "use `data_dir` with a folder of TASK_SPLIT.jsonl[.gz] files"


@dataclass(frozen=True)
class TaskItems:
    """The questions to ask: the first `len(items)` of the `total` questions of a split.

    Args:
        whole_fingerprint: of all questions of the split.
    """

    task: Task
    split: str
    items: tuple[Item, ...]
    total: int
    whole_fingerprint: str

    @property
    def is_usual_split(self) -> bool:
        """Whether this is the split that the suite scores."""
        return self.split == self.task.splits[0]

    @cached_property
    def fingerprint(self) -> str:
        """Of the questions to ask."""
        return items_fingerprint(item.fingerprint for item in self.items)


def load_items(task: Task, data_dir: Path | None, limit: int | None = None) -> TaskItems:
    """The questions of `task`, or the first `limit` of them.

    Args:
        data_dir: a folder with TASK_SPLIT.jsonl or .jsonl.gz, rows as on the hub. The
            first of the task's splits that has a file is read. None reads the first split from the
            hub.

    Raises:
        UserError: there is no such file, data set or network; a row (named by file and line) is
            not JSON, lacks a column or has a label out of range; there are no rows.
    """
    if limit is not None and limit < 1:
        raise UserError(f"The limit must be at least 1 item, not {limit}.")
    if data_dir is None:
        split, source = task.splits[0], f"the hub's {task.repo}"
        rows = hub_rows(task, split)
    else:
        split, path = find_file(task, data_dir)
        source, rows = path.name, file_rows(path)
    # All rows are read despite the limit, so that a broken file never passes.
    items = tuple(to_item(task, row, f"{source}, {place}") for place, row in rows)
    if not items:
        raise UserError(f"{source} is empty: expected one question of {task.name} per line.")
    whole = items_fingerprint(item.fingerprint for item in items)
    return TaskItems(task, split, items[:limit], len(items), whole)


def to_item(task: Task, row: Any, where: str) -> Item:
    """The question of one row.

    Raises:
        UserError: the row does not have the task's form; the message says `where`.
    """
    found = list(row) if isinstance(row, dict) else []
    if missing := [column for column in task.columns if column not in found]:
        raise UserError(
            f"{where}: no column {missing[0]!r}; {task.name} needs {', '.join(task.columns)}, "
            f"found {first_few(found) or type(row).__name__}."
        )
    try:
        return task.to_item(row)
    except UserError as error:
        raise UserError(f"{where}: {error}.") from None
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        raise UserError(
            f"{where}: not a row of {task.name} as on the hub ({task.repo}): {error}."
        ) from error


def find_file(task: Task, folder: Path) -> tuple[str, Path]:
    """The split and the file of `task` in `folder`.

    Raises:
        UserError: the folder or the file is missing.
    """
    if not folder.is_dir():
        raise UserError(f"There is no folder {str(folder)!r} to read tasks from.")
    names = {f"{task.name}_{split}{end}": split for split in task.splits for end in ENDINGS}
    for name, split in names.items():
        if (folder / name).is_file():
            return split, folder / name
    near = did_you_mean(next(iter(names)), sorted(path.name for path in folder.iterdir()))
    raise UserError(
        f"There is no data for {task.name} in {folder.name!r}: expected {' or '.join(names)}.{near}"
    )


def file_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Each line's number and content; blank lines are skipped."""
    number = 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in numbered_lines(cast(BinaryIO, file), path.name):
                yield f"line {number}", parse_json(line, nonfinite=True)
    except UserError:  # a line is too long
        raise
    except ValueError as error:  # of JSON, or of bytes that are not UTF-8
        raise UserError(
            f"{path.name}, line {number}: broken JSON ({error}); expected one question per line."
        ) from error
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(
            f"{path.name} cannot be read after line {number} ({error}); fetch it again."
        ) from error


def hub_rows(task: Task, split: str) -> Iterator[tuple[str, Any]]:
    """The rows of a split on the hub; with HF_HUB_OFFLINE set, those of an earlier download."""
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            f"Reading {task.name} from the hub needs `pip install datasets`; or {WITHOUT_HUB}."
        ) from error
    if not datasets.config.HF_HUB_OFFLINE:
        require_on_hub(task.repo, "dataset", WITHOUT_HUB)
    datasets.disable_progress_bars()
    try:
        rows = datasets.load_dataset(task.repo, task.config, split=split)
    except Exception as error:  # of datasets, the hub or the HTTP library: no common class
        raise UserError(
            f"The data for {task.name} ({task.repo}) cannot be loaded from the hub "
            f"({type(error).__name__}). Check the network and HF_HUB_OFFLINE, or {WITHOUT_HUB}."
        ) from error
    for number, row in enumerate(rows, 1):
        yield f"row {number}", row
