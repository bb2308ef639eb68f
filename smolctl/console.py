"""Talking to people: stdout is for data, everything here but `table` goes to stderr."""

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console, JustifyMethod
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

SECONDS_BETWEEN_LINES = 30.0
# That a bar's speed and ETA look back, at most 1000 updates: a step may take minutes.
SPEED_SECONDS = 3600.0
LEAST_WORDS = 16  # characters of a column of words where there is no room for more


class Talk(Console):
    """A console whose reader may go away: what is said is lost, the work goes on."""

    def on_broken_pipe(self) -> None:
        self.quiet = True


stderr = Talk(stderr=True, highlight=False, soft_wrap=True)
stdout = Console(highlight=False, soft_wrap=True)


def say(text: str) -> None:
    stderr.print(text, markup=False)


def warn(text: str) -> None:
    stderr.print(f"Warning: {text}", style="yellow", markup=False)


def warn_if_busy() -> None:
    """Say so if other work may take the machine, whose times are then not its own: two threads that
    share a core with others may wait for each other most of the time."""
    cores = os.cpu_count() or 1
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load > cores / 2:
        warn(
            f"this machine has been busy for the last minute (load {load:.1f} on {cores} cores). "
            "Where other work goes on, what is measured now may be many times too slow."
        )


def progress(*columns: str) -> Progress:
    """A progress bar with an ETA and `columns` (rich format strings); shown on a terminal only."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        *(TextColumn(column) for column in columns),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        console=stderr,
        transient=True,
        disable=not stderr.is_terminal,
        speed_estimate_period=SPEED_SECONDS,
    )


@contextlib.contextmanager
def counting(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Gives a function that is told how many of `total` are done.

    It shows a bar on a terminal; elsewhere it says a line with an ETA every half minute.
    """
    said = time.monotonic()
    with progress("{task.completed}/{task.total}") as bar:
        # Started by the first update: what an earlier process did does not count as speed.
        task = bar.add_task(what, total=total, start=False)

        def update(done: int) -> None:
            nonlocal said
            bar.update(task, completed=done)
            bar.start_task(task)
            left = bar.tasks[0].time_remaining
            if (
                left is not None
                and not stderr.is_terminal
                and time.monotonic() - said > SECONDS_BETWEEN_LINES
            ):
                said = time.monotonic()
                say(f"{what}: {done:,} of {total:,}, ETA {duration(left)}")

        yield update


def table(
    title: str, header: Sequence[str], rows: Iterable[Sequence[str]], n_words: int = 1
) -> None:
    """Print a table to stdout; the first `n_words` columns left, the others right.

    What is too wide goes on below with the columns that tell the rows apart: neither a name in
    the first column nor a number is broken.
    """
    rows = list(rows)
    if any(len(row) != len(header) for row in rows):
        raise ValueError(f"A row of {title!r} has not the {len(header)} cells of its header.")
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 120  # of a file or a pipe rich would think 80
    for part in parts(header, rows, n_words, console.width):
        view = Table(title=title, title_justify="left", title_style="bold")
        for index, width in part.items():
            justify: JustifyMethod = "left" if index < n_words else "right"
            view.add_column(header[index], justify=justify, overflow="fold", width=width)
        for row in rows:
            view.add_row(*(row[index] for index in part))
        console.print(view, markup=False)
        title = ""


def parts(
    header: Sequence[str], rows: Sequence[Sequence[str]], n_words: int, width: int
) -> list[dict[int, int]]:
    """The columns of the tables, none wider than `width`, into which one is divided: the width of
    each by its index. Every table begins with the fewest columns in which no two rows agree, at
    most those of words."""
    longest = [max(map(cell_len, column)) for column in zip(header, *rows, strict=True)]
    least = list(longest)
    for index, name in enumerate(header):
        cells = [row[index] for row in rows]
        if index == 0:  # names have no spaces
            cells = [word for cell in cells for word in cell.split()]
        if 0 < index < n_words:
            least[index] = min(longest[index], LEAST_WORDS)
        else:
            least[index] = max(map(cell_len, [*name.split(), *cells]), default=0)
    n_keys = 1
    while n_keys < n_words and len({tuple(row[:n_keys]) for row in rows}) < len(rows):
        n_keys += 1
    keys, found = list(range(n_keys)), [list(range(n_keys))]
    for index in range(n_keys, len(header)):
        columns = [*found[-1], index]
        if room(columns, least, width) >= 0 or found[-1] == keys:
            found[-1] = columns
        else:
            found.append([*keys, index])
    divided = []
    for columns in found:
        left, widths = room(columns, least, width), {}
        for index in columns:
            more = max(0, min(longest[index] - least[index], left))
            widths[index], left = least[index] + more, left - more
        divided.append(widths)
    return divided


def room(columns: Sequence[int], widths: Sequence[int], width: int) -> int:
    """What a table of these columns leaves of `width`; a border and two spaces go with each."""
    return width - sum(widths[index] + 3 for index in columns) - 1


def facts(title: str, pairs: Iterable[tuple[str, str]]) -> None:
    """Print `name  value` lines to stdout."""
    view = Table(title=title, title_justify="left", title_style="bold", show_header=False, box=None)
    view.add_column(style="dim", no_wrap=True)
    view.add_column(overflow="fold")
    for name, value in pairs:
        view.add_row(name, value)
    stdout.print(view, markup=False)


def print_json(value: Any) -> None:
    """Print a value to stdout as one line of JSON."""
    json.dump(value, sys.stdout)
    sys.stdout.write("\n")


def count(n: float) -> str:
    """12,345 as `12.3k`, 151,028,224 as `151.0M`."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if n >= size:
            return f"{n / size:.1f}{unit}"
    return f"{n:.0f}"


def size(n_bytes: float) -> str:
    """`640 B`, `12.3 kB`, `1.5 GB`: units of 1000."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n_bytes >= factor:
            return f"{n_bytes / factor:.1f} {unit}"
    return f"{n_bytes:.0f} B"


def duration(seconds: float) -> str:
    """`47 s`, `3 min 20 s`, `46 h 12 min`."""
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def hush() -> None:
    """Keep what the libraries log on import, of kernels for other machines, from the terminal."""
    import logging

    for name in ("torchao", "bitsandbytes", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
