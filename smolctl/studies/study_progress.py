"""How far a study has come, from its files alone: without its text, and without timing a step."""

from collections.abc import Sequence
from pathlib import Path

from smolctl.analysis.kept_study import study_command
from smolctl.analysis.run_metrics import tuning_loss
from smolctl.analysis.study_plan import KEPT
from smolctl.studies import step_times
from smolctl.studies.plan import PlannedRun, horizons, tuning_runs
from smolctl.studies.rate_search import search
from smolctl.studies.study_file import read_study
from smollm2.errors import UserError
from smollm2.runs.manifest import Role
from smollm2.runs.run import Run


def why_none_finished(study: Path, runs: Sequence[Run]) -> str:
    """Why the study in a folder has no finished run to compare yet, and what to type."""
    try:
        finished, planned = tuning_so_far(study, runs)
    except UserError:  # damaged since the study began
        finished = planned = 0
    name, is_tuning = repr(study.name), not any(run.role is Role.FINAL for run in runs)
    if is_tuning and finished < planned:
        state = (
            f"Study {name} is still tuning ({finished} of {planned} runs so far); the runs that "
            "are compared come after it."
        )
    else:
        state = f"Study {name} has no finished runs to compare yet."
    return f"{state} {how_to_go_on(study, runs)}"


def how_to_go_on(study: Path, runs: Sequence[Run]) -> str:
    """The sentence that says how the study in a folder goes on."""
    words = "Continue"
    if any(not run.is_finished and run.is_being_written for run in runs):
        words = "Another process is running it: wait, or share its work"
    return f"{words}: {study_command(study)}"


def tuning_so_far(study: Path, runs: Sequence[Run]) -> tuple[int, int]:
    """How many runs of a study's tuning have finished, and how many there are so far, as its grid
    may grow; 0 of 0 without a tuning.

    Raises:
        UserError: the study file cannot be read, or a loss of a run.
    """
    read = read_study(study / KEPT)
    tuning = read.tuning
    if tuning is None:
        return 0, 0
    seconds = {arm.name: 1.0 for arm in read.arms}
    if read.equal == "seconds":
        seconds = step_times.read_recorded(read, study.parent) or seconds
    configs = horizons(read, seconds)
    finished = {run.name: run for run in runs if run.is_finished}

    def loss_of(planned: PlannedRun) -> float | None:
        run = finished.get(planned.name)
        return None if run is None else tuning_loss(run)

    planned = search(tuning, lambda rates: tuning_runs(tuning, rates, read, configs), loss_of).runs
    return sum(run.name in finished for run in planned), len(planned)
