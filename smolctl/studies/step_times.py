"""Seconds per step of each arm, from which the horizons of equal seconds follow.

They are measured once, when a study begins, and kept next to its runs in `study.json`.
"""

import math
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from smolctl.studies.alternation import Alternation
from smolctl.studies.machine import warn_if_busy
from smolctl.studies.study_file import Study
from smolctl.talk import say
from smollm2.data import TokenData
from smollm2.device import environment, matmul_rate_now
from smollm2.errors import UserError
from smollm2.files import write_json
from smollm2.parse import Unreadable, read_json
from smollm2.protocol.resolve import resolve
from smollm2.protocol.run_config import differing
from smollm2.runs.run import list_runs
from smollm2.training.trainer import probe

PROBE_SECONDS = 0.5  # of each of the two measurements of an arm


def measure(study: Study, data: TokenData) -> dict[str, float]:
    """Seconds that a step of each arm takes on this machine, uncompiled: the mean of two
    measurements, made in turns there and back."""
    say("Measuring a step of each arm on this machine ...")
    warn_if_busy()
    protocols = {arm.name: resolve(arm.config).on(data) for arm in study.arms}
    first = protocols[study.arms[0].name]
    turns = Alternation(
        lambda arm: probe(protocols[arm], data, PROBE_SECONDS).step_seconds,
        partial(matmul_rate_now, first.device, first.dtype),
    )
    seconds: dict[str, list[float]] = {}
    for turn in turns.round(list(protocols)):
        seconds.setdefault(turn.arm, []).append(turn.found)
    return {arm: fmean(found) for arm, found in seconds.items()}


def record_of(study: Study, results: Path) -> Path:
    """The file of a study's step times."""
    return results / study.name / "study.json"


def read_recorded(study: Study, results: Path) -> dict[str, float] | None:
    """The study's recorded step times; None if it has no runs yet.

    Raises:
        UserError: they are missing, cannot be read, or were measured on another machine, with
            another protocol or for other arms: they would not give equal seconds here.
    """
    # Without a run nothing depends on a record: the times are measured again.
    runs, broken = list_runs(results, study.name)
    if not broken and all(run.is_imported for run in runs):
        return None
    known, conditions = read_record(record_of(study, results), study)
    if missing := [arm.name for arm in study.arms if arm.name not in known]:
        raise UserError(
            f"Study {study.name!r} began without arm {missing[0]!r}, and equal seconds are "
            "measured at the start; give the file another name."
        )
    if fields := differing(conditions, conditions_of(study), ("at the start", "now")):
        raise UserError(
            f"Study {study.name!r} began under other conditions, and equal seconds hold only "
            f"under those: {fields}. Continue as it began, or give the file another name."
        )
    return known


def read_record(record: Path, study: Study) -> tuple[dict[str, float], dict[str, Any]]:
    """Seconds by arm, and the conditions under which they were measured.

    Raises:
        UserError: the record is missing or invalid.
    """
    remedy = "restore it, or give the study file another name."
    if not record.exists():
        raise UserError(
            f"The runs of study {study.name!r} follow from step times in {record}, "
            f"which is gone; {remedy}"
        )
    try:
        content = read_json(record)
        known = {arm: float(seconds) for arm, seconds in content["step_seconds"].items()}
        conditions = dict(content["measured"])
    except KeyError as error:
        raise UserError(f"{record} lacks {error}; {remedy}") from None
    except Unreadable as error:
        raise UserError(f"{record} cannot be read ({error.reason}); {remedy}") from None
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise UserError(f"{record} cannot be read ({error}); {remedy}") from None
    if not all(0 < seconds < math.inf for seconds in known.values()):
        raise UserError(f"{record} has a step time that is not a positive number; {remedy}")
    return known, conditions


def write_record(study: Study, results: Path, step_seconds: dict[str, float]) -> None:
    """Record step times that were measured on this machine."""
    content = {"step_seconds": step_seconds, "measured": conditions_of(study)}
    write_json(record_of(study, results), content)


def conditions_of(study: Study) -> dict[str, Any]:
    """What the time of a step depends on, apart from the model."""
    config = resolve(study.arms[0].config)
    machine = environment(config.device)
    return {
        "device_name": machine["device_name"],
        "threads": machine["threads"],
        "tokens_per_step": config.tokens_per_step,
        "seq_len": config.seq_len,
    }
