"""Launches a study: finds what is left of it, and hands that to a launcher, once at a time."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from smolctl.command_line import command
from smolctl.studies.launch_record import (
    LaunchRecord,
    is_launching,
    lock_of,
    read_launch,
)
from smolctl.studies.launch_spec import Launch, LauncherSpec
from smolctl.studies.launchers import find_launcher
from smolctl.studies.ledger import is_result
from smolctl.studies.study_file import Study
from smolctl.studies.study_progress import runs_so_far
from smolctl.studies.tokens import is_gone
from smollm2.errors import RunError, UserError
from smollm2.files import FULL, make_folder
from smollm2.runs.links import require_own
from smollm2.runs.manifest import RunState
from smollm2.runs.names import LAUNCH
from smollm2.runs.packed import require_unpacked
from smollm2.runs.run import list_runs

# States of a job that has ended, in the words of Slurm.
ENDED = {
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL"),
    *("OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT"),
}


def require_launchable(rungs: tuple[Study, ...]) -> Study:
    """The only study of a file, whose runs do not depend on where they are trained.

    Raises:
        UserError: it has several, or gives its arms equal seconds of one machine.
    """
    study = rungs[0]
    if study.ladder is not None:
        raise UserError(
            "The sizes of a ladder follow from each other, so they are not launched as jobs: run "
            "it with --launch local:N, or run smolctl study in several places, which share it."
        )
    if study.equal == "seconds":
        raise UserError(
            'The arms of this study get equal = "seconds" of one machine, so its runs are trained '
            "there, one after the other: run it without --launch, --only and --at-once."
        )
    return study


def runs_left(
    study: Study, results: Path, data: str | None = None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The names of the runs that are left of a study: of its tuning, and the final ones.

    Args:
        data: where its text is, if not where the study says.

    Raises:
        UserError: it has no runs yet and its text is not there; or it is packed.
    """
    require_unpacked(results / study.name)
    runs, _ = list_runs(results, study.name)
    source = data or study.arms[0].config.data
    if not runs and is_gone(source):
        raise UserError(f"There is no file or folder {source!r}; give --data PATH.")
    tuning, final = ([run.name for run in part] for part in runs_so_far(study, runs))
    over = {run.name for run in runs if run.is_finished or is_result(run)}
    if any(run.name in final for run in runs):  # the rates are chosen: none is tuned again
        over |= {run.name for run in runs if run.name in tuning and run.state is RunState.FAILED}
    return tuple(run for run in tuning if run not in over), tuple(
        run for run in final if run not in over
    )


def start_launch(launcher: LauncherSpec, launch: Launch, file: Path) -> LaunchRecord:
    """Have a launcher train what is left of a study.

    Args:
        file: of the study, as it was typed.

    Raises:
        UserError: the launcher does not work here, or the study is being launched already.
    """
    assert launcher.start is not None
    launcher.require()
    with launching(launcher, launch, file) as record:
        launcher.start(launch, record)
    return record


@contextlib.contextmanager
def launching(launcher: LauncherSpec, launch: Launch, file: Path) -> Iterator[LaunchRecord]:
    """Keep other launches of a study out; yields the record of this one.

    Raises:
        UserError: another launch of it goes on, or its folder cannot be written to.
    """
    folder = launch.folder
    try:
        make_folder(folder / LAUNCH)
        require_own(folder, LAUNCH)
        taken = lock_of(folder).acquire(timeout=0)
    except TimeoutError:
        raise busy(file, folder) from None
    except OSError as error:
        if error.errno in FULL:
            raise RunError(f"Cannot write to {folder}: {error.strerror}.") from None
        raise UserError(
            f"Cannot write to {folder}: {error.strerror}; choose another --results."
        ) from None
    with taken:
        before = read_launch(folder)
        if before is not None and has_active(job_states(before)):
            raise busy(file, folder)
        record = LaunchRecord(folder, launch.id, launcher.name)
        record.write()
        yield record


def busy(file: Path, folder: Path) -> UserError:
    """The error that refuses a second launch."""
    record = read_launch(folder)
    by = f" by {record.launcher} since {record.at[:16].replace('T', ' ')} UTC" if record else ""
    status, cancel = (study_words(action, file, folder.parent) for action in ("status", "cancel"))
    return UserError(
        f"Study {folder.name!r} has been launched already{by}, and that goes on; nothing was "
        f"started. How far it is: {status}. To stop it: {cancel}"
    )


def study_words(action: str, file: Path, results: Path) -> str:
    """The command that does something with the launch of a study."""
    return command("study", action, str(file), results=results)


def job_states(record: LaunchRecord) -> dict[str, str]:
    """The states of the jobs of a launch and of their tasks, as `LauncherSpec.jobs`."""
    return find_launcher(record.launcher).jobs(record)


def has_active(states: Mapping[str, str]) -> bool:
    """Whether one of these jobs has not ended."""
    return any(state not in ENDED for state in states.values())


def goes_on(record: LaunchRecord, states: Mapping[str, str]) -> bool:
    """Whether a launch goes on: its process, or one of its jobs, which have these states."""
    return is_launching(record.folder) or has_active(states)


def cancel_launch(folder: Path) -> LaunchRecord:
    """Stop the launch of the study in a folder; what it has trained is kept.

    Raises:
        UserError: none goes on, or it cannot be stopped from here.
    """
    record = read_launch(folder)
    if record is None or not goes_on(record, job_states(record)):
        raise UserError(f"No launch of study {folder.name!r} goes on, so there is none to stop.")
    find_launcher(record.launcher).cancel(record)
    return record
