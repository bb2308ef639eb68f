"""Contenders side by side: each in its own process, alternating, with the same settings.

A script declares what it measures and the contenders like this:

    def main() -> None:
        parser = side_by_side.parser(__doc__)
        parser.add_argument("--steps", type=int, default=10)    # children get the same options
        options = side_by_side.start(parser, measure)           # a child ends here
        contenders = {"pow2 1x512": ("ours", "transformers", "limit")}
        side_by_side.run(options, contenders, ["tokens_per_second"])

    def measure(work: str, contender: str, options: argparse.Namespace) -> Row:
        return {"tokens_per_second": ...}

`run` starts a process for each round, work and contender: round by round, so a machine that slows
down slows all of them. It waits until the machine is idle, and before every measurement until its
products are as fast as they were (see `idle`; --patience 0 does not wait). All get the same threads
and, by `SETTINGS`, the allocator and caches that `smolctl` gives itself. The machine's limit is a
contender like the others.

Each row goes to the script's CSV at once, a long table: `work`, `contender` and `round`, the
script's quantities, and then for the contender's process `peak_rss_mb` (10^6 bytes, imports
included) and `versions` of its imports, `device`, `threads` and the `command`. Measuring a
work again replaces its rows and leaves the others. `read` reads such a table, `middle` gives
a median of it.
"""

import argparse
import contextlib
import csv
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from idle import Guard, rate_in_process
from rich.console import Console
from rich.table import Table

from smolctl.cli.startup import KEPT_PRODUCTS

Row = dict[str, Any]
Measure = Callable[[str, str, argparse.Namespace], Row]

# Settings that smolctl makes for itself when it starts, for every contender. As in
# `keep_freed_memory`, the C allocator keeps freed memory; else a peer would pay for page faults.
# Bytecode is kept, as for installed packages; else only ours is compiled at every start.
SETTINGS = KEPT_PRODUCTS | {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
    "PYTHONDONTWRITEBYTECODE": "",
}
INSTALL = "pip install -e '.[dev,lm-eval,llama-cpp]'"
# A row records the versions of these, if its contender imported them.
PACKAGES = ("torch", "transformers", "tokenizers", "lm_eval", "llama_cpp")
FIRST = ("work", "contender", "round")
LAST = ("peak_rss_mb", "versions", "device", "threads", "command")
TEXTS = ("work", "contender", "versions", "device", "command")


def parser(doc: str | None) -> argparse.ArgumentParser:
    """The options that every script has; `doc` is the script's docstring."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument(
        "--patience", type=float, default=600, metavar="SECONDS", help="to wait for an idle machine"
    )
    parser.add_argument("--works", help="only works with one of these comma-separated words")
    parser.add_argument(
        "--contenders", help="only contenders with one of these words; nothing goes to the CSV"
    )
    parser.add_argument("--csv", type=Path, default=Path(sys.argv[0]).with_suffix(".csv"))
    parser.add_argument("--measure", nargs=2, metavar=("WORK", "CONTENDER"), help="in this process")
    return parser


def add_data(parser: argparse.ArgumentParser) -> None:
    """The parser of scripts that need real text, questions or the published tokenizer."""
    parser.add_argument(
        "--data",
        type=Path,
        required="SMOLCTL_DATA" not in os.environ,
        default=os.environ.get("SMOLCTL_DATA"),
        help="a folder with corpus/, eval/ and tokenizer/ (default: $SMOLCTL_DATA)",
    )


def start(parser: argparse.ArgumentParser, measure: Measure) -> argparse.Namespace:
    """The options. A child process instead measures its contender, prints the row and exits.

    Args:
        measure: returns the row of a work and contender, at least its quantities. It may have more
            cells, which `run` passes to `amend`, and its own `device` or `versions`.
    """
    options = parser.parse_args()
    if problem := problem_of(options):
        parser.error(problem)
    if options.measure is None:
        return options
    work, contender = options.measure
    try:
        row = measure(work, contender, options)
    except ModuleNotFoundError as error:
        if error.name not in PACKAGES:
            raise
        sys.exit(f"The peer {error.name} is not installed; {INSTALL} installs all peers.")
    row.setdefault("peak_rss_mb", peak_rss_mb())  # before anything else is imported
    loaded = ((name, sys.modules[name]) for name in PACKAGES if name in sys.modules)
    row.setdefault("versions", ", ".join(f"{name} {module.__version__}" for name, module in loaded))
    if "device" not in row:
        from smollm2.device import device_name

        row["device"] = device_name("cpu")
    print(json.dumps(row))
    sys.exit()


def problem_of(options: argparse.Namespace) -> str:
    """What is wrong with the common options; empty if nothing is."""
    for name in ("rounds", "threads"):
        if getattr(options, name) < 1:
            return f"--{name} is at least 1."
    if not 0 <= options.patience < math.inf:
        return "--patience is a number of seconds; 0 does not wait."
    for name in ("works", "contenders"):
        if (words := getattr(options, name)) is not None and not all(words.split(",")):
            return f"--{name} takes words separated by commas, none empty."
    if options.csv.is_dir() or not options.csv.parent.is_dir():
        return f"--csv takes a file in a folder that is there, not {options.csv}."
    return ""


def run(
    options: argparse.Namespace,
    contenders: Mapping[str, Sequence[str]],
    quantities: Sequence[str],
    amend: Callable[[Row, list[Row]], Row] = lambda row, before: row,
) -> list[Row]:
    """Measure the contenders of each work alternately, and print the medians of the quantities.

    Args:
        contenders: by the name of the work.
        quantities: the columns of the CSV that the script's rows fill.
        amend: makes the row to be written from a row and the earlier ones.

    Raises:
        SystemExit: there is no such work or contender; or a contender failed, after all others were
            measured.
    """
    works = chosen(contenders, options.works)
    if not works:
        sys.exit(f"No work has {options.works!r} in its name. Available: {', '.join(contenders)}.")
    if not any(chosen(contenders[work], options.contenders) for work in works):
        names = dict.fromkeys(name for work in works for name in contenders[work])
        sys.exit(f"There is no contender {options.contenders!r}. Available: {', '.join(names)}.")
    guard = Guard(options.patience, lambda: rate_in_process(options.threads))
    guard.wait_for_quiet()
    log, rows, failed = Console(stderr=True), list[Row](), list[str]()
    columns, before = [*FIRST, *quantities, *LAST], read(options.csv)
    for done, work in enumerate(works, start=1):
        # Until a work is measured again its rows stay.
        kept = [row for row in before if row.get("work") not in (None, *works[:done])]
        for number in range(1, options.rounds + 1):
            for contender in chosen(contenders[work], options.contenders):
                guard.wait_for_speed()
                try:
                    row = in_process(work, contender, options)
                except subprocess.CalledProcessError as error:
                    log.print(error.stderr, markup=False)
                    failed.append(f"{work}: {contender}")
                    continue
                rows.append(amend(row | {"round": number, "command": command()}, rows))
                if not options.contenders:
                    write(options.csv, columns, [*kept, *rows])
                cells = (f"{row[name]:,.4g} {name}" for name in quantities if is_number(row, name))
                log.print(
                    f"{work}: {contender}, round {number}: {', '.join(cells)}", soft_wrap=True
                )
    Console().print(medians(rows, quantities))
    if failed:
        sys.exit(f"Failed: {'; '.join(dict.fromkeys(failed))}.")
    return rows


def chosen(names: Iterable[str], words: str | None) -> list[str]:
    """The `names` that contain one of the comma-separated `words`; all without words."""
    return [name for name in names if words is None or any(w in name for w in words.split(","))]


def in_process(work: str, contender: str, options: argparse.Namespace) -> Row:
    """The row of one measurement, in a process of its own, with this one's options."""
    output = subprocess.run(
        [sys.executable, *sys.argv, "--measure", work, contender],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | SETTINGS | {"OMP_NUM_THREADS": str(options.threads)},
    ).stdout
    row: Row = json.loads(output.splitlines()[-1])
    return {"work": work, "contender": contender, "threads": options.threads} | row


def command() -> str:
    """How this script was called, files by their base names."""
    return " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *map(base, sys.argv[1:])])


def base(argument: str) -> str:
    return Path(argument).name if os.sep in argument else argument


def medians(rows: Sequence[Row], quantities: Sequence[str]) -> Table:
    """A line for each work and contender."""
    shown = [*quantities, "peak_rss_mb"]
    names = (quantity.replace("_", " ") for quantity in shown)
    table = Table("work", "contender", *names, title="Medians of the rounds")
    for work, contender in dict.fromkeys((row["work"], row["contender"]) for row in rows):
        values = (middle(rows, work, contender, quantity) for quantity in shown)
        table.add_row(work, contender, *("–" if x is None else f"{x:,.4g}" for x in values))
    return table


def middle(rows: Sequence[Row], work: str, contender: str, quantity: str) -> float | None:
    """The median over the rounds; None if there are none."""
    found = [row for row in rows if (row["work"], row["contender"]) == (work, contender)]
    values = [row[quantity] for row in found if is_number(row, quantity)]
    return median(values) if values else None


def is_number(row: Row, quantity: str) -> bool:
    return isinstance(row.get(quantity), int | float)


def read(path: Path) -> list[Row]:
    """The rows of a script's CSV; none without the file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [
            {name: cell if name in TEXTS else number(cell) for name, cell in row.items()}
            for row in csv.DictReader(file)
        ]


def write(path: Path, columns: Sequence[str], rows: Iterable[Row]) -> None:
    """Replace a script's CSV."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def number(cell: str) -> float | str:
    """`cell` as a number if it is one, else unchanged."""
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(cell)
    return cell


def peak_rss_mb() -> float:
    """Peak resident memory of this process in MB; rusage may give its parent's. nan elsewhere than
    on Linux. (`smollm2.device` has this too, but imports torch, which is 300 MB.)"""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    peaks = [int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM:")]
    return peaks[0] if peaks else float("nan")
