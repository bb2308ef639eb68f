"""`smolctl train` in several processes, as torchrun starts them."""

import contextlib
import socket
from collections.abc import Callable

import typer

from smolctl.cli.console import say
from smolctl.cli.progress import handle_signals
from smolctl.cli.train_result import show_result
from smolctl.cli.train_run import Ready, TrainOptions, execute
from smolctl.studies.tokens import tokens_of
from smollm2.data import TokenData
from smollm2.device import resolve_device
from smollm2.errors import UserError
from smollm2.runs.run import Run, open_run
from smollm2.training.failures import as_run_error
from smollm2.training.parallel import follow
from smollm2.training.world import ProcessLost, World, joining


def train_together(
    ready: Callable[[], Ready | None],
    options: TrainOptions,
    source: str | None,
    tokenizer: str | None,
    device: str | None,
    as_json: bool,
    *,
    is_sharded: bool,
) -> None:
    """Train as one of several processes: the first makes the run, and the others follow it.

    Args:
        ready: makes or finds the run; None if there is nothing to train.
        source, tokenizer: of the run's tokens, where they are not on this machine.
        is_sharded: whether the processes divide the weights too.
    """
    with joining(resolve_device(device), is_sharded) as world:
        if world.leads:
            lead(world, ready, options, as_json)
        else:
            follow_leader(world, options, source, tokenizer)


def lead(
    world: World, ready: Callable[[], Ready | None], options: TrainOptions, as_json: bool
) -> None:
    """Train, write and talk, as the first process."""
    try:
        made = ready()
    except BaseException as error:  # the others wait for the run's name, or for a code to end with
        with contextlib.suppress(ProcessLost):
            world.told(2 if isinstance(error, UserError) else 1, at_start=True)
        raise
    world.told(made.run.name if made else 0, at_start=True)
    if made:
        world.require_ready(None)
        say(f"{made.run.name}: {world.size} processes train it together.")
        try:
            execute(made, options, world)
        finally:
            world.release()
        show_result(made.run, as_json)


def follow_leader(
    world: World, options: TrainOptions, source: str | None, tokenizer: str | None
) -> None:
    """Compute what the first process asks for. It also decides when to stop, so signals that stop a
    training are ignored here.

    Raises:
        UserError: this machine does not see the run.
        typer.Exit: there is nothing to train.
    """
    handle_signals(lambda number, frame: None)
    name = world.told(None, at_start=True)
    if isinstance(name, int):
        raise typer.Exit(name)
    where, problem = f"Process {world.rank} on {socket.gethostname()}", None
    try:
        run = open_run(options.results, options.study, name)
        data = tokens_here(run, source, tokenizer)
    except UserError as error:
        problem = f"{where} cannot train: {error} All processes must see the same --results."
    try:
        world.require_ready(problem)
    except UserError:  # the first process says it
        raise typer.Exit(2) from None
    try:
        follow(run.protocol, data, world)
    except Exception as error:
        raise as_run_error(run, error) from error


def tokens_here(run: Run, source: str | None, tokenizer: str | None) -> TokenData:
    """The run's tokens from this machine's cache, else prepared again from `source`."""
    try:
        return tokens_of(run, None, None)
    except UserError:
        if source is None:
            raise
        return tokens_of(run, source, tokenizer)
