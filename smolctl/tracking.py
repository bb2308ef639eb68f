"""`smolctl train --track`: a run's rows in TensorBoard, Weights & Biases or Trackio as well.

The CSV files stay the record: a tracker that is missing, offline or fails is warned of once, and
the run goes on without it.
"""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

from smolctl.options import TRACKERS
from smollm2.train import Observer

if TYPE_CHECKING:
    from smollm2.runs import Run

PROJECT = "smolctl"
# Seconds that W&B may take before the first step and after the last one.
START_SECONDS, FINISH_SECONDS = 30, 60


class Tracker(Protocol):
    """Where rows go. It is made before the first step; a resumed run goes on in the same place."""

    def __init__(self, run: "Run") -> None: ...

    def log(self, table: str, step: int, values: dict[str, float]) -> None:
        """A row of `train`, `val` or, at the end, `test`."""

    def close(self) -> None:
        """No row will come any more."""


class TensorBoard:
    """Event files in the run's directory: `tensorboard --logdir results`."""

    def __init__(self, run: "Run") -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.open = lambda step: SummaryWriter(str(run.path / "tensorboard"), purge_step=step)
        self.writer: Any = None

    def log(self, table: str, step: int, values: dict[str, float]) -> None:
        if self.writer is None:
            # Steps that a killed process wrote after its last checkpoint are made anew.
            self.writer = self.open(step if table == "train" else step + 1)
        for name, value in values.items():
            self.writer.add_scalar(f"{table}/{name}", value, step)
        self.writer.flush()  # a kill must not lose what the tables have kept

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()


class WandB:
    """Weights & Biases; what it keeps on this machine is in the run's directory. It asks nobody to
    log in: without a login it records for `wandb sync`."""

    def __init__(self, run: "Run") -> None:
        import wandb

        from smolctl.console import say

        mode = os.environ.get("WANDB_MODE")
        if mode is None and not wandb.login(prompt=False, verify=False):
            mode = "offline"
        if mode == "offline":
            say(f"wandb is offline; later: wandb sync {run.path}/wandb/offline-run-*")
        self.run = wandb.init(
            project=PROJECT,
            id=identity(run),
            name=run.name,
            group=run.study,
            config=facts(run),
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
        if step >= self.run.starting_step:  # it takes no step twice
            self.run.log({f"{table}/{name}": value for name, value in values.items()}, step=step)

    def close(self) -> None:
        self.run.finish()


class Trackio:
    """Trackio's own folder on this machine, or the space that its environment variables name. After
    a kill it lacks the rows of the last moment, and has those that are made anew twice."""

    def __init__(self, run: "Run") -> None:
        import trackio

        self.run = trackio.init(
            PROJECT, identity(run), group=run.study, config=facts(run), resume="allow", embed=False
        )

    def log(self, table: str, step: int, values: dict[str, float]) -> None:
        self.run.log({f"{table}/{name}": value for name, value in values.items()}, step=step)

    def close(self) -> None:
        import trackio

        trackio.finish()  # the run's own leaves it to be finished again at the exit, on stdout


KINDS: dict[str, type[Tracker]] = dict(zip(TRACKERS, (TensorBoard, WandB, Trackio), strict=True))


def identity(run: "Run") -> str:
    """What a run is called by a tracker: its name may be another run's later, this is not."""
    created = "".join(filter(str.isdigit, run.manifest["created_at"].partition("+")[0]))
    return f"{run.name}-{created}"


def facts(run: "Run") -> dict[str, Any]:
    """What the manifest says of a run that does not change while it trains."""
    names = ("arm", "role", "started_from", "protocol", "parameters", "environment")
    return {name: run.manifest[name] for name in names}


class Tracked(Observer):
    """Tells `observer` everything, and a tracker the rows, until that fails."""

    def __init__(self, observer: Observer, run: "Run", name: str) -> None:
        self.observer, self.run, self.name = observer, run, name
        self.tracker: Tracker | None = self.attempt(lambda: KINDS[name](run))

    def attempt(self, work: Callable[[], Any]) -> Any:
        """What `work` gives; if it fails nothing is tracked any more, and a warning says so."""
        from smolctl.console import warn
        from smolctl.quantizing import in_words

        try:
            with contextlib.redirect_stdout(sys.stderr):  # some of them talk
                return work()
        except ImportError as error:
            reason = f"it cannot be imported ({error}); pip install {self.name}"
        except Exception as error:
            reason = f"{type(error).__name__}: {in_words(error)}"
        self.tracker = None
        warn(f"{self.name} does not track {self.run.name} any further: {reason}. The run goes on.")
        return None

    def send(self, table: str, row: dict[str, Any]) -> None:
        if (tracker := self.tracker) is not None:
            values = {name: value for name, value in row.items() if name != "step"}
            self.attempt(lambda: tracker.log(table, row["step"], values))

    def close(self) -> None:
        """Send the test scores of a run that is finished, and let go of the tracker."""
        if self.tracker is not None and self.run.is_finished:
            scores = self.attempt(lambda: dict(self.run.test_scores()))
            self.send("test", {"step": self.run.protocol.steps} | (scores or {}))
        if self.tracker is not None:
            self.attempt(self.tracker.close)

    def should_stop(self) -> bool:
        return self.observer.should_stop()

    def on_step(self, row: dict[str, Any]) -> None:
        self.observer.on_step(row)
        self.send("train", row)

    def on_validation(self, row: dict[str, Any]) -> None:
        self.observer.on_validation(row)
        self.send("val", row)

    def on_evaluation(self, split: str, done: int, total: int) -> None:
        self.observer.on_evaluation(split, done, total)

    def on_warning(self, text: str) -> None:
        self.observer.on_warning(text)


@contextlib.contextmanager
def tracked(observer: Observer, run: "Run", name: str | None) -> Iterator[Observer]:
    """`observer`, and with a `name` of a tracker one that tells it the rows too."""
    if name is None:
        yield observer
        return
    both = Tracked(observer, run, name)
    try:
        yield both
    finally:
        both.close()
