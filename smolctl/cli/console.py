"""Output: messages and progress go to stderr; tables, facts and JSON to stdout.

Text may come from files of others: whatever a terminal would obey is printed as an escape.
"""

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import rich.table
from rich.cells import cell_len, set_cell_size
from rich.console import Console, JustifyMethod
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from smolctl.cli.flags import with_flags
from smolctl.cli.streams import OutputError
from smolctl.printable import printable, shortened
from smolctl.talk import Show
from smolctl.units import count, duration

SECONDS_BETWEEN_LINES = 30.0
# How far back a bar's speed and ETA look (at most 1000 updates): a step may take minutes.
SPEED_SECONDS = 3600.0
PIPED_WIDTH = 120  # characters
LEAST_WORDS = 16  # width of a column of words that must shrink, in characters


# Brackets and colons stay as they are: names have some.
plain_console = partial(Console, markup=False, emoji=False, highlight=False)
stderr = plain_console(stderr=True, soft_wrap=True)
stdout = plain_console(soft_wrap=True)


def say(text: str) -> None:
    """Print a message on stderr."""
    stderr.print(printable(with_flags(text)))


def warn(text: str) -> None:
    """Print a warning on stderr."""
    stderr.print(f"Warning: {shortened(printable(with_flags(text)))}", style="yellow")


def bar(*columns: str) -> Progress:
    """A progress bar with an ETA and `columns` (rich format strings); shown on a terminal only."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        *(TextColumn(column, markup=False) for column in columns),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        console=stderr,
        transient=True,
        disable=not stderr.is_terminal,
        speed_estimate_period=SPEED_SECONDS,
    )


@contextlib.contextmanager
def progress() -> Iterator[Show]:
    """Yield a function that takes what is being done, how much is done, and the total.

    It shows a bar on a terminal; elsewhere it prints a line every half minute.
    """
    said = time.monotonic()
    with bar("{task.fields[amount]}") as shown:
        # Started by the first call: work of an earlier process does not count as speed.
        task = shown.add_task("", total=None, amount="", start=False)

        def show(what: str, done: int, total: int | None) -> None:
            nonlocal said
            amount = count(done) if total is None else f"{count(done)}/{count(total)}"
            shown.update(
                task, description=printable(what), completed=done, total=total, amount=amount
            )
            shown.start_task(task)
            if not stderr.is_terminal and time.monotonic() - said > SECONDS_BETWEEN_LINES:
                said, left = time.monotonic(), shown.tasks[0].time_remaining
                of_total = "" if total is None else f" of {total:,}"
                say(f"{what}: {done:,}{of_total}" + (f", ETA {duration(left)}" if left else ""))

        yield show


def print_table(
    title: str, header: Sequence[str], rows: Iterable[Sequence[str]], n_words: int = 1
) -> None:
    """Print a table to stdout; the first `n_words` columns are left-aligned, the others right.

    A table that is too wide is split into several, each with the columns that tell the rows apart,
    so that no number and no name in the first column is broken.
    """
    header, rows = printed(header), [printed(row) for row in rows]
    if any(len(row) != len(header) for row in rows):
        raise ValueError(f"A row of {title!r} does not have the {len(header)} cells of its header.")
    console = plain_console()
    if not console.is_terminal:
        console.width = piped_width()
    for part in parts(header, rows, n_words, console.width):
        view = rich.table.Table(title=printable(title), title_justify="left", title_style="bold")
        for index, width in part.items():
            justify: JustifyMethod = "left" if index < n_words else "right"
            view.add_column(header[index], justify=justify, overflow="fold", width=width)
        for row in rows:
            view.add_row(*(row[index] for index in part))
        console.print(view)
        title = ""


def piped_width() -> int:
    """The width of tables in a file or a pipe: `COLUMNS`, or 120, where rich assumes 80."""
    columns = os.environ.get("COLUMNS", "")
    is_width = columns.isascii() and columns.isdecimal() and len(columns) <= 4
    return (int(columns) if is_width else 0) or PIPED_WIDTH


def printed(cells: Sequence[str]) -> list[str]:
    """The cells of a row, fit for a terminal."""
    return [printable(cell) for cell in cells]


def parts(
    header: Sequence[str], rows: Sequence[Sequence[str]], n_words: int, width: int
) -> list[dict[int, int]]:
    """The parts that a table is split into, none wider than `width`: column index -> column width.

    Each begins with the fewest columns of words that tell all rows apart.
    """
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
    """The width that a table of these columns leaves; each has a border and two spaces."""
    return width - sum(widths[index] + 3 for index in columns) - 1


def print_facts(title: str, pairs: Iterable[tuple[str, str]], *, is_result: bool = True) -> None:
    """Print `name  value` lines to stdout.

    Args:
        is_result: whether they are what the command was run for. Otherwise it succeeds without
            them, with a warning.
    """
    cells = [printed(pair) for pair in pairs]
    width = max((cell_len(name) for name, _ in cells), default=0)
    try:
        stdout.print(printable(title), style="bold")
        for name, value in cells:  # a long value is not broken: it may be a command
            stdout.print(Text.assemble((f" {set_cell_size(name, width)}", "dim"), f"  {value}"))
    except OutputError as error:
        if is_result:
            raise
        warn(str(error))


def print_lines(lines: Iterable[str]) -> None:
    """Print lines of text to stdout."""
    sys.stdout.writelines(f"{printable(line)}\n" for line in lines)


def print_json(value: Any) -> None:
    """Print a value to stdout as one line of JSON."""
    json.dump(value, sys.stdout)
    sys.stdout.write("\n")


def print_file(text: str) -> None:
    """Print what could be a file to stdout: in UTF-8, whatever the terminal's encoding."""
    sys.stdout.flush()
    sys.stdout.buffer.write(for_reader(text).encode(errors="backslashreplace"))
    sys.stdout.buffer.flush()


def print_at_once(text: str) -> None:
    """Print a piece of text to stdout, without waiting for the rest of its line."""
    sys.stdout.write(for_reader(text))
    sys.stdout.flush()


def for_reader(text: str) -> str:
    """`text` as it is for a file or a program, and fit for a terminal."""
    return printable(text) if sys.stdout.isatty() else text
