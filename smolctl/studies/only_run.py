"""One run of a study by itself, as the task of a launcher trains it."""

from smolctl.studies.plan import PlannedRun
from smolctl.studies.runner import Session
from smollm2.errors import UserError, did_you_mean, first_few
from smollm2.runs.manifest import Role
from smollm2.runs.packed import require_unpacked


def train_only(session: Session, name: str) -> bool:
    """Train one run of a study to its end, or wait for the process that trains it; before a final
    run, what the tuning lacks, which other tasks share.

    Returns:
        Whether it has ended; False if it failed.

    Raises:
        UserError: the study plans no such run, or it was made with different settings.
        RunError: no learning rate can be chosen.
    """
    session.refuse_changes()
    planned = planned_run(session, name)
    if session.is_over(planned):
        return True
    require_unpacked(session.folder)
    session.write_records()
    if planned.role is Role.FINAL:
        session.tune()
        planned = planned_run(session, name)  # at its learning rate
    session.train_all([planned])
    return name not in session.failed


def planned_run(session: Session, name: str) -> PlannedRun:
    """The planned run of that name.

    Raises:
        UserError: there is none.
    """
    planned = {run.name: run for run in session.planned()}
    if name not in planned:
        raise UserError(
            f"Study {session.study.name!r} plans no run {name!r}.{did_you_mean(name, [*planned])} "
            f"Its runs: {first_few(planned)}."
        )
    return planned[name]
