"""What a user typed -> runs and checkpoints.

A target is a run's name, a variant (all its finished runs), or a path; RUN@STEP is a checkpoint.
"""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from smollm2.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from smollm2.checkpoints import Checkpoint
    from smollm2.protocol import Protocol
    from smollm2.runs import Run


def finished_runs(results: Path, study: str) -> "list[Run]":
    """Every finished run of a study; a directory that is broken is named and left out.

    Raises:
        UserError: there is none.
    """
    from smolctl.console import warn
    from smollm2.runs import list_runs

    runs, broken = list_runs(results, study)
    for sentence in broken:
        warn(f"{sentence} It is left out.")
    finished = [run for run in runs if run.is_finished]
    if not finished:
        unfinished = [run.name for run in runs]
        hint = f" ({', '.join(unfinished)} not finished)" if unfinished else ""
        raise UserError(
            f"{results / study} has no finished runs{hint}. Train one: "
            "smolctl train --variant pow2 --scale nano --steps 300"
        )
    return finished


def runs_of(target: str, results: Path, study: str) -> "list[Run]":
    """The finished runs that `target` names.

    Raises:
        UserError: nothing is called so, or the run it names is not finished.
    """
    from smollm2.runs import Run

    if "/" in target or target.startswith("."):
        run = Run(Path(target))
        if not run.is_finished:
            raise UserError(f"Run {target} is not finished.")
        return [run]
    finished = finished_runs(results, study)
    by_name = {run.name: [run] for run in finished}
    by_variant: dict[str, list[Run]] = {}
    for run in finished:
        by_variant.setdefault(run.protocol.variant, []).append(run)
    for choices in (by_name, by_variant):
        if target in choices:
            return choices[target]
    known = [*by_variant, *by_name]
    raise UserError(
        f"{target!r} is no finished run or variant of {results / study}."
        f"{did_you_mean(target, known)} There are {', '.join(known)}."
    )


def starting_point(
    results: Path, study: str, spec: str, draft: "Protocol"
) -> "tuple[Checkpoint, str]":
    """What `--from` names: RUN (final weights, at step 0) or RUN@STEP (weights and optimizer).

    Returns the checkpoint and what to call it.

    Raises:
        UserError: no such run or checkpoint, another architecture, or a horizon already passed.
    """
    from smollm2.protocol import differing
    from smollm2.runs import Run, open_run

    target, at, step_text = spec.partition("@")
    is_path = "/" in target
    run = Run(Path(target)) if is_path else open_run(results, study, target)
    if fields := differing(vars(run.protocol.model), vars(draft.model)):
        raise UserError(f"Run {run.name!r} is another architecture: {fields}.")
    if not at:
        final = run.checkpoints.final()
        if final is None:
            raise UserError(
                f"Run {run.name!r} has no final weights; name one of its checkpoints "
                f"({checkpoints_of(run)})."
            )
        return dataclasses.replace(final, step=0, seconds=0.0), run.name
    if step_text not in map(str, run.checkpoints.steps()):
        raise UserError(
            f"Run {run.name!r} has no checkpoint at step {step_text!r}; it has "
            f"{checkpoints_of(run)}. A run keeps one for later with --keep-step."
        )
    if int(step_text) >= draft.steps:
        raise UserError(
            f"The new run ends at step {draft.steps}, and step {step_text} is not before that; "
            "give more --steps (they count from the start of the first run)."
        )
    if run.protocol.recipe.optimizer != draft.recipe.optimizer:
        raise UserError(
            f"{spec} continues {run.protocol.recipe.optimizer}, not {draft.recipe.optimizer}; give "
            f"--optimizer {run.protocol.recipe.optimizer}, or start from final weights."
        )
    checkpoint = run.checkpoints.at(int(step_text))
    return checkpoint, f"{run.name}@{checkpoint.step}"


def checkpoints_of(run: "Run") -> str:
    steps = run.checkpoints.steps()
    return ", ".join(f"{run.name}@{step}" for step in steps) if steps else "none"
