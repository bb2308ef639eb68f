"""What a study warns of before it starts."""

from smolctl.studies.machine import warn_if_busy
from smolctl.studies.runner import Session
from smolctl.studies.study_file import Study
from smolctl.talk import warn
from smollm2.errors import first_few


def warn_of_one_seed(study: Study) -> None:
    """Warn of arms that are tuned for a verdict and have one seed, which allows none."""
    if study.tuning and (alone := [arm.name for arm in study.arms if len(arm.seeds) < 2]):
        warn(
            f"one seed gives no verdict, and {first_few(alone)} has no more: give at least two, "
            "better seeds = [0, 1, 2]."
        )


def warn_before(session: Session) -> None:
    """Warn of one seed and of other work on this machine. A process that shares the study is no
    other work; where steps are timed at the start, that warns by itself."""
    warn_of_one_seed(session.study)
    is_shared = any(not r.is_finished and r.is_being_written for r in session.existing_runs())
    if session.study.equal != "seconds" and not is_shared:
        warn_if_busy()
