"""What a user typed -> runs: a run's name, a variant (all its finished runs), or a path."""

from pathlib import Path
from typing import TYPE_CHECKING

from smollm2.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from smollm2.runs import Run


def finished_runs(results: Path, study: str) -> "list[Run]":
    """Every finished run of a study; a directory that is broken is named and left out.

    Raises:
        UserError: there is none.
    """
    from smolctl.console import warn
    from smollm2.runs import list_runs

    runs, broken = list_runs(results, study)
    for sentence in broken:
        warn(f"{sentence} It is left out.")
    finished = [run for run in runs if run.is_finished]
    if not finished:
        unfinished = [run.name for run in runs]
        hint = f" ({', '.join(unfinished)} not finished)" if unfinished else ""
        raise UserError(
            f"{results / study} has no finished runs{hint}. Train one: "
            "smolctl train --variant pow2 --scale nano --steps 300"
        )
    return finished


def runs_of(target: str, results: Path, study: str) -> "list[Run]":
    """The finished runs that `target` names.

    Raises:
        UserError: nothing is called so, or the run it names is not finished.
    """
    from smollm2.runs import Run

    if "/" in target or target.startswith("."):
        run = Run(Path(target))
        if not run.is_finished:
            raise UserError(f"Run {target} is not finished.")
        return [run]
    finished = finished_runs(results, study)
    by_name = {run.name: [run] for run in finished}
    by_variant: dict[str, list[Run]] = {}
    for run in finished:
        by_variant.setdefault(run.protocol.variant, []).append(run)
    for choices in (by_name, by_variant):
        if target in choices:
            return choices[target]
    known = [*by_variant, *by_name]
    raise UserError(
        f"{target!r} is no finished run or variant of {results / study}."
        f"{did_you_mean(target, known)} There are {', '.join(known)}."
    )
