"""Whether the targets of `compare` are checkpoints or arms of a study."""

import itertools
from collections.abc import Sequence
from pathlib import Path

from smolctl.analysis.checkpoint_pair import started_from
from smolctl.studies.import_model import is_elsewhere
from smolctl.studies.targets import called, is_path_target, no_model
from smollm2.errors import UserError
from smollm2.runs.run import Run, find_run, list_runs


def are_checkpoints(targets: Sequence[str], results: Path, study: str) -> bool:
    """Whether targets of `compare` are checkpoints rather than arms of the study: one of them is an
    imported or a quantized model, or all runs of one started from another."""
    there, _ = list_runs(results, study)
    named = {target: runs_called(target, there) for target in targets}
    for target, runs in named.items():
        if all(run.is_imported for run in runs) if runs else is_no_run(target):
            return True
    imported = [run for run in there if run.is_imported]
    for base, other in itertools.permutations(targets, 2):
        starts = named[base]
        # What started from an imported run may be an arm of its name.
        if {run.name for run in named[other]} <= {run.name for run in starts}:
            starts = called(base, imported)
        if named[other] and all(
            any(started_from(run, one) for one in starts) for run in named[other]
        ):
            return True
    return False


def runs_called(target: str, there: list[Run]) -> list[Run]:
    """The runs that a target names, those of an arm before an imported one; none where it names a
    model that is not a run.

    Raises:
        UserError: it is the path of something that is neither.
    """
    if not is_path_target(target):
        arms = called(target, [run for run in there if not run.is_imported])
        return arms or called(target, there)
    if is_no_run(target):
        return []
    run = find_run(Path(target))
    if run is None:
        raise UserError(no_model(Path(target)))
    return [run]


def is_no_run(target: str) -> bool:
    """Whether a target names a model from elsewhere or, as RUN+NAME or by its folder, a quantized
    one."""
    if is_elsewhere(target) or (Path(target) / "model.json").exists():
        return True
    return "+" in Path(target).name and not (Path(target) / "run.json").exists()
