"""Writes the ledger of a study: its plan before the first run starts, each result, each change of
the plan. See `analysis.study_plan` for the file. The caller holds the study's lock."""

import dataclasses
import math
from pathlib import Path

from smolctl.analysis.study_plan import (
    FORMAT,
    LEDGER,
    LadderPlan,
    Ledger,
    PlanChange,
    PlannedResult,
    StudyPlan,
    TuningPlan,
    gone_or_replaced,
    is_loss_of,
    ledger_checksum,
    read_ledger,
)
from smolctl.command_line import quoted, short_path
from smolctl.studies.study_file import Study
from smolctl.talk import say, warn
from smollm2.errors import RunError, UserError, first_few
from smollm2.files import write_json
from smollm2.runs.manifest import Role, RunState, now
from smollm2.runs.run import Run


def planned_by(study: Study) -> StudyPlan:
    """The plan that a study file makes."""
    grid, ladder = study.tuning, study.ladder
    return StudyPlan(
        seeds={arm.name: arm.seeds for arm in study.arms},
        looks=study.planned_looks,
        margin=study.notes.margin,
        blocked=study.is_blocked,
        tuning=TuningPlan(grid.lr, grid.seeds, grid.grows) if grid else TuningPlan(),
        ladder=LadderPlan(ladder.sizes, ladder.at) if ladder else None,
    )


def begin_ledger(study: Study, folder: Path, runs: list[Run]) -> None:
    """Write the plan before the first run starts; later, add what the study file has changed.

    Args:
        runs: those that the study has already.

    Raises:
        UserError: as `read_ledger`.
        RunError: it cannot be written.
    """
    record_results(folder, runs)  # those that no study saw, such as of a run that was resumed alone
    ledger = read_ledger(folder)
    plan, results = planned_beside(ledger, study), results_of_runs(runs)
    if ledger is None:
        if results:
            warn(
                "this study has results and no ledger of what was planned: its verdicts are "
                "exploratory."
            )
        else:
            write_ledger(folder, Ledger(now(), None, plan, {}, ()))
    elif plan != ledger.current:
        say_what_changed(ledger)
        change = PlanChange(now(), len(ledger.results), plan)
        write_ledger(folder, dataclasses.replace(ledger, changes=(*ledger.changes, change)))


def planned_beside(ledger: Ledger | None, study: Study) -> StudyPlan:
    """The plan that a study file makes, without what a ledger of an older version leaves out."""
    plan = planned_by(study)
    if ledger is not None and ledger.current.tuning is None:
        plan = dataclasses.replace(plan, tuning=None, ladder=None)
    return plan


def say_if_changed(study: Study, folder: Path) -> None:
    """Say what it means if the study file plans something else than the ledger, before it is
    written there."""
    ledger = read_ledger(folder)
    if ledger is not None and planned_beside(ledger, study) != ledger.current:
        say_what_changed(ledger)


def say_what_changed(ledger: Ledger) -> None:
    """Tell the user what it means that the study file has changed."""
    if ledger.results:
        say(
            f"The plan has changed after {len(ledger.results)} results, which the ledger notes. "
            "Verdicts are judged by the plan before the first result; with seeds beyond it, or "
            "another tuning, they are exploratory. For a verdict of the new plan give the file "
            "another name; looks, announced from the start, allow more seeds later."
        )


def record_results(folder: Path, runs: list[Run]) -> None:
    """Add the results of runs that the ledger, if there is one, does not have yet.

    Raises:
        UserError: as `read_ledger`.
        RunError: it cannot be written.
    """
    ledger = read_ledger(folder)
    if ledger is None:
        return
    found = {
        name: result for name, result in results_of_runs(runs).items() if name not in ledger.results
    }
    if not found:
        return
    results = dict(sorted((ledger.results | found).items()))
    first = min(result.finished_at for result in results.values())
    write_ledger(folder, dataclasses.replace(ledger, results=results, first_result_at=first))


def require_same_results(study: str, folder: Path, runs: list[Run]) -> None:
    """Raise `UserError` if a run with a result in the ledger was removed or trained again: a result
    that is seen and then replaced is no sample any more."""
    ledger = read_ledger(folder)
    if ledger is None:
        return
    gone, replaced = gone_or_replaced(ledger, runs)
    if gone:
        raise UserError(
            f"Study {study!r} has results in its {LEDGER} of runs whose folders were removed: "
            f"{first_few(gone)}. Trained again, they would replace results that were seen. Put "
            "the folders back, give the study file another name, or remove the whole folder "
            f"{quoted(short_path(folder))} to start over."
        )
    if replaced:
        raise UserError(
            f"{first_few(replaced)} of study {study!r} replaced an older run with the same seed, "
            f"whose result is in {LEDGER}: a seed counts once, with its first result. Put the "
            "older folder back, or give the study file another name."
        )
    if changed := [run.name for run in runs if has_other_loss(run, ledger)]:
        raise UserError(
            f"{first_few(changed)} of study {study!r} has another test loss than {LEDGER}: its "
            "files were changed after it ended. Put back what they were, or give the study file "
            "another name."
        )


def has_other_loss(run: Run, ledger: Ledger) -> bool:
    """Whether a finished run has another test loss than its result in the ledger."""
    result = ledger.results.get(run.name)
    if result is None or not run.is_finished:
        return False
    loss = loss_of_test(run)
    return loss is None or not is_loss_of(result, loss)


def is_result(run: Run) -> bool:
    """Whether a run is a final one that has finished or diverged. To train one of these again would
    give a seed another chance."""
    # Not `has_diverged`, which assumes it of the failed runs of older versions: those may be
    # trained again.
    diverged = run.state is RunState.FAILED and run.manifest.get("diverged") is True
    return run.role is Role.FINAL and (run.is_finished or diverged)


def results_of_runs(runs: list[Run]) -> dict[str, PlannedResult]:
    """The results among `runs`, by name. One that diverged has the time at which it is read."""
    return {
        run.name: PlannedResult(
            run.arm,
            run.protocol.seed,
            str(run.manifest["finished_at"] or now()),
            loss_of_test(run) if run.is_finished else None,
            diverged=not run.is_finished,
        )
        for run in runs
        if is_result(run)
    }


def loss_of_test(run: Run) -> float | None:
    """The final test loss; None if it cannot be read."""
    try:
        loss = float(run.test_scores()["loss"])
    except (UserError, KeyError):
        return None
    return loss if math.isfinite(loss) else None


def write_ledger(folder: Path, ledger: Ledger) -> None:
    """Replace the ledger of the study in a folder.

    Raises:
        RunError: it cannot be written.
    """
    content = {"format": FORMAT, **dataclasses.asdict(ledger)}
    try:
        write_json(folder / LEDGER, content | {"checksum": ledger_checksum(content)})
    except OSError as error:
        raise RunError(f"Cannot write {folder / LEDGER}: {error.strerror or error}.") from None
