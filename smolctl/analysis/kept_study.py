"""The study file that `smolctl study` keeps next to its runs, as far as messages name it: its arms
and seeds, and the command that goes on with the study."""

from pathlib import Path

from smolctl.analysis.study_plan import KEPT
from smolctl.command_line import command, resume_command, short_path
from smollm2.errors import UserError
from smollm2.parse import read_toml
from smollm2.runs.manifest import Role
from smollm2.runs.run import Run


def kept_seeds(study: Path) -> dict[str, list[int]]:
    """The seeds of each arm in the order of the file that the study in a folder keeps; empty
    without a file, or if it is not as `smolctl study` writes it."""
    try:
        arms = read_toml(study / KEPT, "study", dict).get("arms")
    except UserError:
        return {}
    tables = arms.items() if isinstance(arms, dict) else ()
    seeds = {name: table.get("seeds") for name, table in tables if isinstance(table, dict)}
    return {name: found for name, found in seeds.items() if isinstance(found, list)}


def study_command(study: Path) -> str:
    """The command that goes on with the study in a folder, from the file that it keeps."""
    return command("study", short_path(study / KEPT), results=study.parent)


def continue_command(run: Run) -> str:
    """The command that goes on with an unfinished run: that of its study if the study's file plans
    it, else one for the run alone."""
    seeds = kept_seeds(run.study_path).get(run.arm)
    is_planned = seeds is not None and (run.role is Role.SWEEP or run.protocol.seed in seeds)
    return study_command(run.study_path) if is_planned else resume_command(run)
