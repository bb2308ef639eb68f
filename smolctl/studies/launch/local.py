"""The machine itself: the command trains in processes, each with its share of the cores."""

import os
import signal

from smolctl.studies.launch_record import LaunchRecord
from smolctl.studies.launch_spec import LauncherSpec
from smollm2.errors import UserError
from smollm2.leftovers import host


def no_jobs(record: LaunchRecord) -> dict[str, str]:
    """None: the process that launches is all there is."""
    return {}


def stop_process(record: LaunchRecord) -> None:
    """Have the process that launches save and stop.

    Raises:
        UserError: it is on another machine.
    """
    if record.host != host():
        raise UserError(
            f"The launch goes on in process {record.pid} of another machine, {record.host}: type "
            "the command there."
        )
    os.kill(record.pid, signal.SIGTERM)


LAUNCHER = LauncherSpec("local", lambda: None, None, no_jobs, stop_process)
