"""How far a study has come, from its files alone: without its text, and without timing a step."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from smolctl.analysis.kept_study import study_command
from smolctl.analysis.run_metrics import tuning_loss
from smolctl.analysis.study_plan import KEPT
from smolctl.studies import step_times
from smolctl.studies.plan import PlannedRun, final_runs, horizons, tuning_runs
from smolctl.studies.rate_search import search
from smolctl.studies.study_file import Study, read_study
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
    seconds = {}
    if read.equal == "seconds":
        seconds = step_times.read_recorded(read, study.parent) or {}
    tuning, _ = runs_so_far(read, runs, seconds)
    finished = {run.name for run in runs if run.is_finished}
    return sum(run.name in finished for run in tuning), len(tuning)


def runs_so_far(
    study: Study, runs: Sequence[Run], step_seconds: Mapping[str, float] | None = None
) -> tuple[list[PlannedRun], list[PlannedRun]]:
    """The runs of a study's tuning, as far as its grid has grown, and its final runs.

    Args:
        runs: those that it has.
        step_seconds: of each arm, for equal seconds, if they are known.

    Raises:
        UserError: a loss of a run cannot be read.
    """
    configs = horizons(study, step_seconds or {arm.name: 1.0 for arm in study.arms})
    final, tuning = final_runs(study, configs), study.tuning
    if tuning is None:
        return [], final
    there = {run.name: run for run in runs}
    has_chosen = any(planned.name in there for planned in final)

    def loss_of(planned: PlannedRun) -> float | None:
        run = there.get(planned.name)
        if run is None or not run.is_finished:
            return math.inf if run is not None and run.has_diverged else None
        return tuning_loss(run)

    def may_add(added: list[PlannedRun]) -> bool:
        return bool(added) and (not has_chosen or any(run.name in there for run in added))

    at = partial(tuning_runs, tuning, study=study, configs=configs)
    return search(tuning, at, loss_of, may_add).runs, final
