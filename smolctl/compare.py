"""`smolctl compare`: finished runs of two or more arms, side by side."""

import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from smolctl.options import RESULTS, STUDY, Json, Results, Study
from smollm2.errors import UserError

if TYPE_CHECKING:
    from smollm2.runs import Run

EXAMPLES = """
**Examples**

- `smolctl compare orig pow2`

- `smolctl compare orig pow2 moe-160m --study demo --json`
"""


def compare(
    arms: Annotated[list[str], typer.Argument(help="Variants or runs; the first is the base.")],
    study: Study = STUDY,
    results: Results = RESULTS,
    as_json: Json = False,
) -> None:
    """Compare arms on the final test loss; the unit is the run, and one seed decides nothing."""
    import json
    import sys

    from smolctl.console import say, table
    from smolctl.targets import runs_of

    if len(set(arms)) < 2:
        raise UserError("Name at least two different arms: smolctl compare orig pow2.")
    found = comparable({arm: runs_of(arm, results, study) for arm in arms})
    rows = [row_of(arm, found[arms[0]], runs) for arm, runs in found.items()]
    if as_json:
        json.dump(rows, sys.stdout)
        sys.stdout.write("\n")
        return
    table(
        f"{' against '.join([', '.join(arms[1:]), arms[0]])}: final test loss",
        ("arm", "runs", "parameters", "test loss", "difference", "95 % interval", "verdict"),
        (
            (
                row["arm"],
                str(len(row["test_loss"])),
                f"{row['parameters']:,}",
                mean_and_spread(row["test_loss"]),
                *difference_cells(row),
            )
            for row in rows
        ),
    )
    if any(len(row["test_loss"]) < 2 for row in rows):
        say("One run an arm carries no verdict: add seeds with smolctl train ... --seed 1.")


def comparable(arms: "dict[str, list[Run]]") -> "dict[str, list[Run]]":
    """The runs that share the controlled fields and horizon of the first arm's newest run.

    Raises:
        UserError: an arm has none of them.
    """
    from smolctl.console import warn

    def shared(run: "Run") -> dict[str, Any]:
        started_from = run.manifest["started_from"]
        return run.protocol.controlled() | {
            "steps": run.protocol.steps,
            "started from": started_from,
        }

    newest = {arm: max(runs, key=finished_at) for arm, runs in arms.items()}
    base = newest[next(iter(arms))]
    seen: dict[Path, str] = {}
    kept: dict[str, list[Run]] = {arm: [] for arm in arms}
    for arm, runs in arms.items():
        for run in runs:
            other = seen.setdefault(run.path.resolve(), arm)
            if other != arm:
                raise UserError(f"{run.name} stands in both {other!r} and {arm!r}.")
            fields = [k for k, v in shared(base).items() if shared(run)[k] != v]
            if fields:
                warn(f"{run.name} is left out: it differs from {base.name} in {fields}.")
            elif run.protocol.model != newest[arm].protocol.model:
                warn(f"{run.name} is left out: its architecture is not that of {newest[arm].name}.")
            else:
                kept[arm].append(run)
        if not kept[arm]:
            raise UserError(
                f"No run of {arm!r} shares the protocol of {base.name}; train one with the same "
                "settings."
            )
    return kept


def finished_at(run: "Run") -> str:
    return str(run.manifest["finished_at"])


def row_of(arm: str, base: "list[Run]", runs: "list[Run]") -> dict[str, Any]:
    from smolctl.stats import differences

    losses = [test_loss(run) for run in runs]
    row: dict[str, Any] = {
        "arm": arm,
        "runs": [run.name for run in runs],
        "parameters": runs[0].manifest["parameters"]["total"],
        "test_loss": losses,
    }
    if runs is not base:
        difference = differences([test_loss(run) for run in base], {arm: losses})[arm]
        row |= {
            "difference": difference.mean,
            "interval": difference.interval,
            "verdict": difference.verdict,
        }
    return row


def test_loss(run: "Run") -> float:
    return float(run.test_scores()["loss"])


def mean_and_spread(values: list[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.4f}"
    return f"{statistics.mean(values):.4f} ± {statistics.stdev(values):.4f}"


def difference_cells(row: dict[str, Any]) -> tuple[str, str, str]:
    if "difference" not in row:
        return "", "", "base"
    interval = row["interval"]
    text = f"{interval[0]:+.4f} to {interval[1]:+.4f}" if interval else "–"
    return f"{row['difference']:+.4f}", text, row["verdict"]
