"""Trains a run that a command has made or found."""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from smolctl.command_line import resume_command
from smollm2.errors import RunError
from smollm2.runs.run import Run

if TYPE_CHECKING:
    from smollm2.data import TokenData
    from smollm2.training.world import World


class TrainOptions(NamedTuple):
    """What `smolctl train` was given besides the run's own settings."""

    results: Path
    study: str
    keep_steps: frozenset[int]
    checkpoint_every: int | None
    track: str | None


class Ready(NamedTuple):
    """A run that can be trained, its tokens, and the steps whose checkpoints are kept."""

    run: Run
    data: "TokenData"
    keep_steps: frozenset[int]


def execute(made: Ready, options: TrainOptions, world: "World | None" = None) -> None:
    """Train to the end under signal handlers.

    Args:
        world: the processes that train it together; this is the first.
    """
    from smolctl.cli.progress import observed
    from smolctl.studies.machine import warn_if_busy
    from smollm2.training.loop import train
    from smollm2.training.world import ProcessLost

    warn_if_busy()
    run = made.run
    resume = resume_command(run) + ("" if options.track is None else f" --track {options.track}")
    try:
        how = f"Continue with: {resume}" if world is None else "The same line goes on with --go-on."
        with observed(run, options.track, how, is_patient=world is not None) as observer:
            train(
                *(run, made.data, observer),
                checkpoint_every=options.checkpoint_every,
                keep_steps=made.keep_steps,
                world=world,
            )
    except ProcessLost as error:
        saved = max(run.checkpoints.steps(), default=0)
        what = f"Step {saved} is saved" if saved else "Nothing had been saved"
        raise RunError(
            f"{error} {what}: type the same line again with --go-on, if torchrun does not start "
            "the processes again."
        ) from error
