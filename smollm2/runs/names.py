"""The path of a run, and the names it may have."""

import re
from pathlib import Path

from smollm2.errors import UserError
from smollm2.model.config import VARIANTS
from smollm2.runs.packed import PACK

LAUNCH = "launch"  # of a study: what trains its runs, and the logs of that
FOLDERS = {"figures", LAUNCH, PACK}  # of a study, which are no runs
FILES = {"ledger.json", "speed.csv", "study.toml"}  # a folder there is for their readers to report
RESERVED = {*VARIANTS, *FOLDERS}  # reserved names
LONGEST_NAME = 100  # of a run or study; a file system takes 255 characters, with what is appended


def run_path(results: Path, study: str, name: str) -> Path:
    """The directory of a run.

    Raises:
        UserError: the study's or run's name is not plain.
    """
    if name in RESERVED:
        raise UserError(f"{name!r} is a reserved name; choose another, such as {name}-s0.")
    require_plain("study", study)
    require_plain("run", name)
    return results / study / name


def require_plain(what: str, name: str) -> None:
    """Raise `UserError` unless `name` can be a directory on any file system."""
    if len(name) > LONGEST_NAME:
        raise UserError(
            f"The name of a {what} has at most {LONGEST_NAME} characters, not {len(name)}; give a "
            f"shorter {'`name`' if what == 'run' else 'one'}."
        )
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", name):
        raise UserError(
            f"{name!r} is not a valid name for a {what}; use lower-case letters, digits, '.', '_' "
            "and '-', such as pow2-s0."
        )
