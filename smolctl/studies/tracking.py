"""`smolctl train --track`: send a run's rows to a tracker as well.

The CSV files stay the record: a tracker that is missing, offline or fails is warned about once, and
the run continues without it.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

from smolctl.studies.quantizer import first_line
from smolctl.studies.trackers import Tracker, find_tracker
from smolctl.talk import warn
from smollm2.runs.manifest import Role
from smollm2.runs.run import Run
from smollm2.training.loop import Observer


class Tracked(Observer):
    """Passes every event to `observer`, and rows also to a tracker until it fails."""

    def __init__(self, observer: Observer, run: Run, name: str) -> None:
        self.observer, self.run, self.name = observer, run, name
        make = find_tracker(name)
        self.tracker: Tracker | None = self.attempt(lambda: make(run))

    def attempt(self, work: Callable[[], Any]) -> Any:
        """The result of `work`. If it fails, warn and stop tracking."""
        try:
            with contextlib.redirect_stdout(sys.stderr):  # some of them print
                return work()
        except ImportError as error:
            reason = f"it cannot be imported ({error}); pip install {self.name}"
        except Exception as error:
            reason = f"{type(error).__name__}: {first_line(error)}"
        self.tracker = None
        warn(f"{self.name} no longer tracks {self.run.name}: {reason}. The run continues.")
        return None

    def send(self, table: str, row: dict[str, Any]) -> None:
        if (tracker := self.tracker) is not None:
            values = {name: value for name, value in row.items() if name != "step"}
            self.attempt(lambda: tracker.log(table, row["step"], values))

    def close(self) -> None:
        """Send the final scores if the run is finished, and close the tracker."""
        if self.tracker is not None and self.run.is_finished:
            scores = self.attempt(lambda: dict(self.run.final_scores()))
            table = "final_val" if self.run.role is Role.SWEEP else "test"
            self.send(table, {"step": self.run.protocol.steps} | (scores or {}))
        if self.tracker is not None:
            self.attempt(self.tracker.close)

    def on_start(self) -> None:
        self.observer.on_start()

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
def tracked(observer: Observer, run: Run, name: str | None) -> Iterator[Observer]:
    """`observer`; with the `name` of a tracker, one that also sends it the rows."""
    if name is None:
        yield observer
        return
    both = Tracked(observer, run, name)
    try:
        yield both
    finally:
        both.close()
