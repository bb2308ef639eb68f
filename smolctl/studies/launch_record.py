"""The record of a study's launch: what trains its runs, and where.

results/STUDY/launch/
    launch.json     the newest launch
    launch.lock     held while a process launches, which locally and with Ray is to the end
    JOB.log, RUN.log    what the tasks said
"""

import dataclasses
import os
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout

from smolctl.command_line import short_path
from smollm2.errors import UserError
from smollm2.files import write_json
from smollm2.leftovers import host
from smollm2.parse import MissingFile, read_json
from smollm2.runs.manifest import now
from smollm2.runs.names import LAUNCH

RECORD = "launch.json"
KINDS = {
    "id": str,
    "launcher": str,
    "host": str,
    "pid": int,
    "at": str,
    "jobs": list,
    "tasks": dict,
}


@dataclass
class LaunchRecord:
    """The content of launch.json.

    Args:
        folder: of the study; not in the file.
        id: of the launch.
        launcher: its name.
        host, pid: the process that launched.
        at: when, as ISO 8601.
        jobs: their names, as the launcher's programs take them.
        tasks: the run that each of the jobs' tasks trains.
    """

    folder: Path
    id: str
    launcher: str
    host: str = field(default_factory=host)
    pid: int = field(default_factory=os.getpid)
    at: str = field(default_factory=now)
    jobs: list[str] = field(default_factory=list)
    tasks: dict[str, str] = field(default_factory=dict)

    def add(self, job: str, tasks: dict[str, str]) -> None:
        """Add a job that has been submitted."""
        self.jobs.append(job)  # before it is written, so that it can be cancelled if that fails
        self.tasks |= tasks
        self.write()

    def write(self) -> None:
        """Save the record."""
        content = dataclasses.asdict(self)
        del content["folder"]
        write_json(self.folder / LAUNCH / RECORD, content)


def read_launch(folder: Path) -> LaunchRecord | None:
    """The record of the newest launch of the study in a folder; None if it was never launched.

    Raises:
        UserError: it cannot be read.
    """
    path = folder / LAUNCH / RECORD
    try:
        content = read_json(path)
    except MissingFile:
        return None
    if content.keys() != KINDS.keys() or not all(
        isinstance(content[name], kind) for name, kind in KINDS.items()
    ):
        raise UserError(
            f"{short_path(path)} is not the record of a launch of this version. Once its jobs have "
            "ended, remove it."
        )
    return LaunchRecord(folder, **content)


def log_of(folder: Path, task: str) -> Path:
    """The file of what a task said: of a job's task, or of a run."""
    return folder / LAUNCH / f"{task}.log"


def lock_of(folder: Path) -> FileLock:
    """The lock that a process holds while it launches the study in a folder."""
    return FileLock(folder / LAUNCH / "launch.lock")


def is_launching(folder: Path) -> bool:
    """Whether a process, on whatever machine, is launching the study in a folder; False where the
    lock cannot be tried, as another user's."""
    if not (folder / LAUNCH / "launch.lock").exists():
        return False
    try:
        with lock_of(folder).acquire(timeout=0):
            return False
    except Timeout:
        return True
    except OSError:
        return False


def require_launch(folder: Path, id: str) -> None:
    """Raise `UserError` unless this machine sees the record that a launch wrote."""
    record = read_launch(folder)
    if record is not None and record.id != id:
        raise UserError(
            f"Another launch of study {folder.name!r} has taken the place of this one, so nothing "
            "was trained here."
        )
    if record is None:
        raise UserError(
            f"{host()} does not see {folder / LAUNCH / RECORD} as the launch wrote it, so nothing "
            "was trained. Put --results on a disk that every machine of the cluster shares, and "
            "launch the study again."
        )
