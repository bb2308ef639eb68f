"""`smolctl train --go-on`: a run that is made, or continued if it is there."""

import time

from smolctl.studies.new_run import NewRun
from smolctl.studies.resume import require_result_open
from smolctl.talk import say
from smollm2.errors import UserError
from smollm2.protocol.run_config import differing
from smollm2.runs.names import run_path
from smollm2.runs.run import Run

LOCK_SECONDS = 60.0  # in which processes save and end whose launcher was killed


def existing(new: NewRun) -> Run | None:
    """The run that was made of the same request; None if there is none yet.

    Raises:
        UserError: a run of that name is another one.
    """
    path = run_path(new.results, new.study, new.name)
    if not path.exists():
        return None
    run = Run(path)
    now = run.protocol.to_dict() | {"started_from": run.manifest["started_from"]}
    asked = new.resolved.to_dict() | {"started_from": new.start and new.start.label}
    # By default these are of the machine or the version that made the run, which may be others.
    for name in ("device", "dtype", "compile", "held_out_windows", "data_order"):
        if getattr(new.config, name) is None:
            asked[name] = now[name]
    if fields := differing(now, asked):
        raise UserError(
            f"Run {new.name!r} exists with other settings: {fields}. Give the same options, or "
            "another --name."
        )
    if run.has_diverged:
        raise UserError(f"Run {new.name!r} has diverged, and would again: {run.manifest['error']}")
    if not run.is_finished:
        require_result_open(run)
        wait_until_free(run)
        run.read()
    return run


def wait_until_free(run: Run) -> None:
    """Wait a while for another process that is writing the run."""
    until = time.monotonic() + LOCK_SECONDS
    if run.is_being_written:
        say(
            f"Waiting up to {LOCK_SECONDS:.0f} s for another process that is writing {run.name} ..."
        )
    while run.is_being_written and time.monotonic() < until:
        time.sleep(1)
