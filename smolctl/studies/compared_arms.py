"""Which arms of a study are compared: those that the user named, or all, as far as they have
finished runs."""

from collections.abc import Sequence
from pathlib import Path

from smolctl.analysis.kept_study import kept_seeds
from smolctl.command_line import command
from smolctl.studies.targets import finished_runs, none_finished, runs_in, runs_of
from smollm2.errors import UserError, first_few
from smollm2.runs.manifest import Role
from smollm2.runs.run import Run


def arms_of_study(results: Path, study: str) -> list[str]:
    """The arms of a study in the order of its file; without a file those of its finished runs in
    the order in which they began.

    Raises:
        UserError: there is neither.
    """
    if planned := list(kept_seeds(results / study)):
        return planned
    runs = finished_runs(results, study)
    runs.sort(key=lambda run: str(run.manifest["created_at"]))
    return list(dict.fromkeys(run.arm for run in runs))


def at_least_two(arms: Sequence[str], results: Path, study: str) -> list[str]:
    """The arms to compare: `arms`, or all of the study if there are none.

    Raises:
        UserError: they are fewer than two; the message lists the study's.
    """
    try:
        known = [] if len(set(arms)) > 1 else arms_of_study(results, study)
    except UserError:
        if not arms:
            raise
        known = []
    found = list(arms) or known
    if len(set(found)) > 1:
        return found
    needed = "Name at least two different arms"
    if len(known) < 2:
        raise UserError(f"{needed}: {command('compare', 'orig', 'pow2', study=study)}.")
    other = next((arm for arm in found if arm in known[1:]), known[1])
    raise UserError(
        f"{needed}, the baseline first. Study {study!r} has {first_few(known)}: "
        f"{command('compare', known[0], other, study=study, results=results)}; without arms all "
        "of them are compared."
    )


def finished_arms(
    arms: Sequence[str], results: Path, study: str
) -> tuple[dict[str, list[Run]], list[str]]:
    """The finished runs of each arm, and a sentence on the arms of the study that have none yet.

    Raises:
        UserError: fewer than two arms have finished runs, or as `runs_of`.
    """
    planned, there = kept_seeds(results / study), runs_in(results, study)
    ended = [run for run in there if run.is_finished and run.role is Role.FINAL]
    known = {run.arm for run in ended} | {run.name for run in there}
    waiting = [arm for arm in arms if arm in planned and arm not in known]
    if waiting and not ended:
        raise none_finished(there, results, study)
    left = [arm for arm in arms if arm not in waiting]
    runs = {arm: runs_of(arm, results, study, with_imported=False, there=there) for arm in left}
    if not waiting:
        return runs, []
    from smolctl.studies.study_progress import how_to_go_on  # imports torch

    state = f"Study {study!r} has no finished run yet of {first_few(waiting)}"
    go_on = how_to_go_on(results / study, there)
    if len(runs) < 2:
        raise UserError(f"{state}. {go_on}")
    return runs, [f"{state}: without them the baseline is {left[0]}. {go_on}"]
