"""`smolctl study --launch` and `--only`: a study as tasks of a cluster, and one such task."""

import dataclasses
import shlex
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from smolctl.cli.console import print_json, say
from smolctl.cli.study_options import StudyOptions
from smollm2.errors import UserError, first_few
from smollm2.files import absolute

if TYPE_CHECKING:
    from smolctl.studies.launch_spec import Launch, LauncherSpec


def launch_of_study(options: StudyOptions, gpus: int = 0, slurm: str = "") -> "Launch":
    """The launch of a study, before it is known which of its runs are left.

    Args:
        gpus: of each run.
        slurm: options of sbatch.
    """
    from smolctl.studies.ladder import read_rungs
    from smolctl.studies.launch_spec import Launch

    rung = read_rungs(options.file)[0]  # the smallest size has the record of a ladder
    try:
        more = tuple(shlex.split(slurm))
    except ValueError as error:  # a quote that does not end
        raise UserError(f"--slurm {slurm!r} is no list of options: {error}.") from None
    whole = dataclasses.replace(
        options, file=absolute(options.file), results=absolute(options.results)
    )
    return Launch(
        folder=whole.results / rung.name,
        # -P as for an installed program: no module is taken from the current folder.
        words=(sys.executable, "-P", "-m", "smolctl", "study", *whole.words),
        here=Path.cwd(),
        at_once=options.at_once,
        gpus=gpus,
        options=more,
    )


def require_consistent(
    launcher: "LauncherSpec", options: StudyOptions, number: int | None, gpus: int, slurm: str
) -> None:
    """Raise `UserError` if options of a launch do not go together.

    Args:
        number: that stood beside the launcher's name.
    """
    if number is not None and options.at_once is not None:
        raise UserError("--launch local:N and --at-once say the same: give one of them.")
    if gpus and launcher.start is None:
        raise UserError("--gpus-per-run is for slurm and ray, which hand out GPUs; omit it.")
    if gpus > 1:
        raise UserError("--gpus-per-run takes 0 or 1: a run of a study trains on one GPU.")
    if slurm and launcher.name != "slurm":
        raise UserError("--slurm has options of sbatch, and goes with --launch slurm alone.")


def launch_elsewhere(
    launcher: "LauncherSpec", launch: "Launch", options: StudyOptions, as_json: bool
) -> None:
    """Have a launcher train what is left of a study, and say what it does.

    Raises:
        UserError: as `start_launch`, or the study cannot be launched.
        typer.Exit: the launcher has ended, and runs are left.
    """
    from smolctl.studies.ladder import read_rungs
    from smolctl.studies.launching import (
        require_launchable,
        runs_left,
        start_launch,
        study_words,
    )

    study = require_launchable(read_rungs(options.file))
    tuning, final = runs_left(study, options.results, options.data)
    launch = dataclasses.replace(launch, tuning=tuning, final=final)
    record = start_launch(launcher, launch, options.file)
    if not record.jobs:  # it has ended
        tuning, final = runs_left(study, options.results, options.data)
    left = [*tuning, *final]
    if as_json:
        found = {"study": study.name, "launcher": launcher.name, "jobs": record.jobs}
        print_json(found | {"left": left})
    if record.jobs:
        what = f"{len(tuning)} runs of the tuning and {len(final)} final ones, then the scores"
        say(f"Submitted to {launcher.name} as jobs {', '.join(record.jobs)}: {what}.")
        say(f"Next: {study_words('status', options.file, options.results)}")
        say(f"      {study_words('cancel', options.file, options.results)}")
    elif left:
        say(f"Not finished: {first_few(left)}. The same command goes on with them.")
        raise typer.Exit(1)
    else:
        say(f"All runs of study {study.name!r} are finished.")


def launching_here(
    launcher: "LauncherSpec", launch: "Launch", options: StudyOptions
) -> AbstractContextManager[object]:
    """A context manager in which this process is the launch of a study."""
    from smolctl.studies.launching import launching

    return launching(launcher, launch, options.file)


def require_seen(options: StudyOptions, launched: str) -> None:
    """Raise `UserError` unless this machine sees what the launch of that id wrote."""
    from smolctl.studies.launch_record import require_launch

    require_launch(launch_of_study(options).folder, launched)


def train_one(options: StudyOptions, run: str) -> None:
    """Train one run of a study.

    Raises:
        UserError: there is no such run.
        typer.Exit: it failed, as has been said.
    """
    from smolctl.studies.ladder import read_rungs
    from smolctl.studies.launching import require_launchable
    from smolctl.studies.only_run import train_only

    require_launchable(read_rungs(options.file))
    if not train_only(next(options.sessions()), run):
        raise typer.Exit(1)
    say(f"Nothing of run {run} is left to train.")
