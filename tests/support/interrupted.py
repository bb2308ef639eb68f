"""Runs that are stopped, or die, on the way."""

import itertools
from pathlib import Path

import pytest

from smollm2.protocol.resolve import resolve
from smollm2.runs.create import create_run
from smollm2.runs.run import Run
from smollm2.training.loop import Observer, train

counter = itertools.count()


def new_run(asked, data, folder: Path, **options) -> Run:
    name, protocol = f"run{next(counter)}", resolve(asked).on(data)
    return create_run(folder, "runs", name, asked, protocol, **options)


class StopAt(Observer):
    """Asks to stop once `step` updates are made."""

    def __init__(self, step: int) -> None:
        self.step, self.done = step, 0

    def should_stop(self) -> bool:
        return self.done >= self.step

    def on_step(self, row) -> None:
        self.done = row["step"]


class Interrupted(BaseException):
    """Stands for a death of the process: nothing in the code catches it."""


class DieAt(StopAt):
    """Dies right after row `step` was written."""

    def should_stop(self) -> bool:
        return False

    def on_step(self, row) -> None:
        if row["step"] == self.step:
            raise Interrupted


def dead_run(case, **options) -> Run:
    """A run that died after step 14, two steps after its newest checkpoint."""
    asked, data, folder, _ = case
    run = new_run(asked, data, folder)
    with pytest.raises(Interrupted):
        train(run, data, DieAt(14), checkpoint_every=6, **options)
    return run
