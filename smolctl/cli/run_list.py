"""The list of `smolctl runs`: a line per run, and one per packed study."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from smolctl.cli.console import print_json, print_table, say, warn
from smolctl.studies.targets import RunStatus, runs_in, saved_step, status_of
from smolctl.units import size
from smollm2.errors import UserError, did_you_mean
from smollm2.files import folder_bytes
from smollm2.runs.conditions import FINAL_TEST
from smollm2.runs.manifest import Role
from smollm2.runs.names import require_plain
from smollm2.runs.packed import PACK, is_packed, packed_manifests
from smollm2.runs.run import Run, list_runs, open_run

COLUMNS = ("what", "state", "test loss", "age")


def print_runs(results: Path, study: str, as_json: bool) -> None:
    """Print the runs of a study, newest first."""
    rows = rows_of(found(results, study))
    if as_json:
        print_json(rows)
    elif not rows:
        say(f"There are no runs in {results / study} yet.")
    else:
        print_table(f"Runs of {study}", ("run", *COLUMNS), [cells(row) for row in rows], n_words=3)
        say(f"{count_of(rows, 'run')}, {size(sum(row['bytes'] for row in rows))}.")


def print_all(results: Path, as_json: bool) -> None:
    """Print a line per run, and one per packed study, newest first; as JSON every run."""
    if as_json:
        print_json(rows_of(found(results, None)))
        return
    rows: list[dict[str, Any]] = []
    packed: list[PackSummary] = []
    for name in study_folders(results):
        try:
            if is_packed(results / name):
                packed.append(summarize_pack(results / name))
            else:
                rows += rows_of(found(results, name))
        except UserError as error:
            warn(f"{error} It is skipped.")
    if not rows and not packed:
        say(f"There are no runs in {results} yet.")
        return
    lines = [(row["created_at"], (f"{row['study']} {row['run']}", *cells(row)[1:])) for row in rows]
    lines += [(pack.created_at, pack.cells()) for pack in packed]
    lines.sort(key=lambda line: line[0] or "", reverse=True)
    print_table("Runs", ("study and run", *COLUMNS), [line for _, line in lines], n_words=3)
    n_bytes = sum(row["bytes"] for row in rows) + sum(pack.n_bytes for pack in packed)
    counts = [count_of(rows, "run")] * bool(rows) + [count_of(packed, "packed study")] * bool(
        packed
    )
    say(f"{' and '.join(counts)}, {size(n_bytes)} in {results}.")


def count_of(things: Sequence[Any], word: str) -> str:
    """`1 run`, `3 runs`, `2 packed studies`."""
    plural = word[:-1] + "ies" if word.endswith("y") else word + "s"
    return f"{len(things):,} {word if len(things) == 1 else plural}"


@dataclass(frozen=True)
class PackSummary:
    """A packed study as one line; `created_at` is that of its newest run."""

    study: str
    n_runs: int
    seeds: dict[str, set[int]]  # of each arm, without its sweep
    states: Counter[str]
    created_at: str
    n_bytes: int

    def cells(self) -> tuple[str, ...]:
        """The line as it is printed."""
        sizes = sorted({len(seeds) for seeds in self.seeds.values()})
        seeds = f"{sizes[0]} to {sizes[-1]}" if len(sizes) > 1 else "".join(map(str, sizes))
        arms = f"{count_of(list(self.seeds), 'arm')} × {seeds} seeds, " if self.seeds else ""
        (first, *others) = self.states.most_common()
        state = ", ".join(f"{n} {name}" for name, n in (first, *others)) if others else first[0]
        what = f"packed: {arms}{self.n_runs} runs"
        return self.study, what, state, "–", age(self.created_at)


def summarize_pack(study: Path) -> PackSummary:
    """The line of a packed study, without unpacking it.

    Raises:
        UserError: the pack is damaged or of a later version.
    """
    manifests = packed_manifests(study)
    seeds: dict[str, set[int]] = {}
    states: Counter[str] = Counter()
    try:
        for manifest in manifests:
            states[Role.IMPORTED if manifest["role"] == Role.IMPORTED else manifest["state"]] += 1
            if manifest["role"] == Role.FINAL:
                seeds.setdefault(str(manifest["arm"]), set()).add(manifest["protocol"]["seed"])
        newest = max(str(manifest.get("created_at") or "") for manifest in manifests)
    except (KeyError, TypeError, ValueError):
        raise UserError(f"The pack of study {study.name!r} has manifests of no version.") from None
    n_bytes = folder_bytes(study / PACK)
    return PackSummary(study.name, len(manifests), seeds, states, newest, n_bytes)


def found(results: Path, study: str | None) -> Iterator[Run]:
    """The runs of a study, or of all; broken directories are reported and skipped.

    Raises:
        UserError: there is no such study.
    """
    if study is not None:
        require_study(results, study)
    for name in study_folders(results) if study is None else [study]:
        yield from runs_in(results, name)


def require_study(results: Path, study: str) -> None:
    """Raise `UserError` if there is no such study."""
    studies = study_folders(results)
    if study not in studies:
        there = f" It has {', '.join(studies)}." if studies else ""
        raise UserError(f"{results} has no study {study!r}.{did_you_mean(study, studies)}{there}")


def study_folders(results: Path) -> list[str]:
    """The names of the folders in `results` that have folders of their own."""
    names = sorted({path.parent.name for path in results.glob("*/*/")})
    return [name for name in names if not name.startswith(".")]


def rows_of(runs: Iterable[Run]) -> list[dict[str, Any]]:
    """Summaries, newest first."""
    rows = [summary(run) for run in runs]
    return sorted(rows, key=lambda row: row["created_at"] or "", reverse=True)


def summary(run: Run) -> dict[str, Any]:
    """A run's line in the list; `step` is the current one of a running run, else the saved one."""
    protocol, state = run.protocol, status_of(run)
    return {
        "study": run.study,
        "run": run.name,
        "variant": protocol.variant,
        "arm": run.arm,
        "role": run.role,
        "scale": protocol.scale,
        "data": protocol.data and protocol.data.source,
        "state": state,
        "step": current_step(run, state),
        "steps": protocol.steps,
        "test_loss": test_loss(run),
        "bytes": run.disk_bytes,
        "created_at": run.manifest.get("created_at"),
        "finished_at": run.manifest.get("finished_at"),
        "path": str(run.home),
        "packed": run.packed_in is not None,
    }


def current_step(run: Run, state: RunStatus) -> int:
    """The step that a run is at: the current one if it is running, else the saved one."""
    if run.is_finished:
        return run.protocol.steps
    saved = saved_step(run)
    if state is RunStatus.RUNNING and (rows := rows_or_none(run, "train")):
        return int(finite_number(rows[-1].get("step")) or saved)
    return saved


def test_loss(run: Run) -> float | None:
    """The loss on the test split at the end of training; None before that, or if eval.csv cannot
    be read."""
    for row in rows_or_none(run, "eval"):
        if (row.get("suite"), row.get("metric")) == (FINAL_TEST, "loss"):
            return finite_number(row.get("value"))
    return None


def rows_or_none(run: Run, table: str) -> list[dict[str, Any]]:
    """The rows of a table; none, and a warning, if it cannot be read."""
    try:
        return run.rows(table)
    except UserError as error:
        warn(str(error))
        return []


def finite_number(text: str | None) -> float | None:
    """The finite number in a cell of a table; None if it holds none."""
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None  # JSON has no other


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """A run's line as it is printed; the columns after the first are `COLUMNS`."""
    what = [row["variant"] + " (nano)" * (row["scale"] == "nano"), row["data"]]
    if row["state"] == RunStatus.FINISHED:
        what.append(f"{row['steps']:,} steps")
    elif row["state"] != RunStatus.IMPORTED:
        what.append(f"{row['step']:,} of {row['steps']:,} steps")
    return (
        row["run"],
        ", ".join(word for word in what if word),
        row["state"],
        "–" if row["test_loss"] is None else f"{row['test_loss']:.4f}",
        age(row["created_at"]),
    )


def age(created_at: str | None) -> str:
    """`40 s`, `12 min`, `5 h`, `3 d` since an ISO time; a dash if that is none or has yet to come,
    as a clock may have been set back."""
    try:
        seconds = (datetime.now(UTC) - datetime.fromisoformat(str(created_at))).total_seconds()
    except (ValueError, TypeError):  # not a time, or one without a zone
        return "–"
    if seconds < 0:
        return "–"
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length:.0f} {unit}"
    return f"{seconds:.0f} s"


def opened(results: Path, study: str, name: str) -> Run:
    """A run of a study.

    Raises:
        UserError: there is none; the message names other studies that have one.
    """
    try:
        return open_run(results, study, name)
    except UserError as error:
        others = [run.study for run in found(results, None) if run.name == name]
        if not others:
            raise
        raise UserError(f"{error} Study {others[0]} has one: --study {others[0]}.") from None


def runs_to_remove(results: Path, study: str, names: Sequence[str], state: str | None) -> list[Run]:
    """The runs of a study that `names` gives by run or arm (all of them without names), in `state`
    if that is given.

    Raises:
        UserError: a name is neither a run nor an arm, or no run is in that state.
    """
    require_plain("study", study)
    if not names:
        require_study(results, study)
    runs, _ = list_runs(results, study)
    wanted = [] if names else runs
    for name in names:
        called = [run for run in runs if run.name == name] or [r for r in runs if r.arm == name]
        wanted += called or [opened(results, study, name)]
    wanted = [run for run in dict.fromkeys(wanted) if state in (None, status_of(run))]
    if not wanted:
        raise UserError(f"No run {'of these' if names else f'of {results / study}'} is {state}.")
    return wanted
