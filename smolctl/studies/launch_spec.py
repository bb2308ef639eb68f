"""What a launcher is given, and what the rest of the code needs to know about it."""

import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from smolctl.studies.launch_record import LaunchRecord

# Of the environment: the number of threads of a process.
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Launch:
    """What is left of a study, as a launcher is given it.

    Args:
        folder: of the study, absolute.
        words: the command that runs all that is left, in `here`.
        here: the current folder, which paths in the study file start from.
        tuning, final: the names of the runs that are left.
        at_once: how many runs train at once; None: as many as there is room for.
        gpus: of each run.
        options: for the program that takes the jobs.
        id: by which a task knows that it sees the folder of this launch.
    """

    folder: Path
    words: tuple[str, ...]
    here: Path
    tuning: tuple[str, ...] = ()
    final: tuple[str, ...] = ()
    at_once: int | None = None
    gpus: int = 0
    options: tuple[str, ...] = ()
    id: str = field(default_factory=lambda: uuid.uuid4().hex[:12])

    @property
    def command(self) -> list[str]:
        """The words of the task that runs all that is left."""
        return [*self.words, "--launched", self.id]

    def command_of(self, run: str) -> list[str]:
        """The words of the task that trains one run."""
        return [*self.command, "--only", run]


@dataclass(frozen=True)
class LauncherSpec:
    """A launcher.

    name: as `--launch` names it.
    require: raises `UserError` where it does not work.
    start: has the runs trained, and adds its jobs to the record, if it has any. None if the command
        itself trains them, in processes of this machine.
    jobs: the states of the record's jobs by their names, as far as they are still known.
    cancel: stops what the record names. It raises `UserError` if that cannot be done from here.
    """

    name: str
    require: Callable[[], None]
    start: Callable[[Launch, LaunchRecord], None] | None
    jobs: Callable[[LaunchRecord], dict[str, str]]
    cancel: Callable[[LaunchRecord], None]
