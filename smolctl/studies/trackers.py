"""Trackers: services that show a run's rows in addition to its own files.

A tracker is one class with `@tracker("name")`, which `smolctl train --track name` then takes.
"""

import os
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from smolctl.command_line import quoted, short_path
from smolctl.talk import say
from smollm2.errors import unknown
from smollm2.runs.run import Run

PROJECT = "smolctl"
# Seconds that W&B may take before the first step and after the last one.
START_SECONDS, FINISH_SECONDS = 30, 60


class Tracker(Protocol):
    """Receives the rows of one run. It is made before the first step; the tracker of a resumed run
    continues in the same place."""

    def __init__(self, run: Run) -> None: ...

    def log(self, table: str, step: int, values: dict[str, float]) -> None:
        """Receive a row of `train`, `val` or, at the end, `test`."""

    def close(self) -> None:
        """Finish: no more rows come."""


TRACKERS: dict[str, type[Tracker]] = {}
AnyTracker = TypeVar("AnyTracker", bound=type[Tracker])


def tracker(name: str) -> Callable[[AnyTracker], AnyTracker]:
    """Register a class as the tracker `name`, which must be new."""

    def register(cls: AnyTracker) -> AnyTracker:
        if name in TRACKERS:
            raise ValueError(f"There is already a tracker {name!r}.")
        TRACKERS[name] = cls
        return cls

    return register


def find_tracker(name: str) -> type[Tracker]:
    """The tracker of that name.

    Raises:
        UserError: there is none; the message lists the names.
    """
    if name not in TRACKERS:
        raise unknown("tracker", name, list(TRACKERS))
    return TRACKERS[name]


@tracker("tensorboard")
class TensorBoard:
    """Event files in the run's directory: `tensorboard --logdir results`."""

    def __init__(self, run: Run) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.open = lambda step: SummaryWriter(str(run.path / "tensorboard"), purge_step=step)
        self.writer: Any = None

    def log(self, table: str, step: int, values: dict[str, float]) -> None:
        if self.writer is None:
            # Steps that a killed process wrote after its last checkpoint are repeated.
            self.writer = self.open(step if table == "train" else step + 1)
        for name, value in values.items():
            self.writer.add_scalar(f"{table}/{name}", value, step)
        self.writer.flush()  # a kill must not lose rows that the tables have

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()


@tracker("wandb")
class WandB:
    """Weights & Biases; its local files are in the run's directory. It never asks for a login:
    without one it records offline, for `wandb sync`."""

    def __init__(self, run: Run) -> None:
        import wandb

        mode = os.environ.get("WANDB_MODE")
        if mode is None and not wandb.login(prompt=False, verify=False):
            mode = "offline"
        if mode == "offline":
            folder = quoted(short_path(run.path / "wandb"))
            say(f"wandb is offline; later: wandb sync {folder}/offline-run-*")
        self.run = wandb.init(
            project=PROJECT,
            id=identity(run),
            name=run.name,
            group=run.study,
            config=constants(run),
            dir=str(run.path),
            mode=mode,
            resume="allow",
            settings=wandb.Settings(
                console="off",
                silent=True,
                init_timeout=START_SECONDS,
                finish_timeout=FINISH_SECONDS,
            ),
        )

    def log(self, table: str, step: int, values: dict[str, float]) -> None:
        if step >= self.run.starting_step:  # it accepts each step once
            self.run.log({f"{table}/{name}": value for name, value in values.items()}, step=step)

    def close(self) -> None:
        self.run.finish()


@tracker("trackio")
class Trackio:
    """Trackio's local folder, or the space that its environment variables name. After a kill the
    rows of the last moment are missing, and repeated steps have two rows."""

    def __init__(self, run: Run) -> None:
        import trackio

        self.run = trackio.init(
            PROJECT,
            identity(run),
            group=run.study,
            config=constants(run),
            resume="allow",
            embed=False,
        )

    def log(self, table: str, step: int, values: dict[str, float]) -> None:
        self.run.log({f"{table}/{name}": value for name, value in values.items()}, step=step)

    def close(self) -> None:
        import trackio

        trackio.finish()  # run.finish() alone would finish again at exit, and print to stdout


def identity(run: Run) -> str:
    """A run's name for a tracker: a run name may be used again later, this one is not."""
    created = "".join(filter(str.isdigit, run.manifest["created_at"].partition("+")[0]))
    return f"{run.name}-{created}"


def constants(run: Run) -> dict[str, Any]:
    """What the manifest says about a run that does not change during training."""
    names = ("arm", "role", "started_from", "protocol", "parameters", "environment")
    return {name: run.manifest[name] for name in names}
