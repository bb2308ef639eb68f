"""What a person sees while a run trains, and the signals that stop it."""

import signal
import time
from types import FrameType
from typing import TYPE_CHECKING, Any, Self

from smolctl.console import count, duration, progress, say, stderr, warn
from smollm2.train import Observer

if TYPE_CHECKING:
    from smollm2.runs import Run

# SIGHUP, where there is one: the terminal or the connection closed.
SIGNALS = [signal.SIGINT, signal.SIGTERM, *filter(None, [getattr(signal, "SIGHUP", None)])]


class TrainingProgress(Observer):
    """A progress bar on a terminal, a line at each validation elsewhere.

    The first SIGINT or SIGTERM lets the trainer save and stop; a second one is obeyed at once.
    """

    def __init__(self, run: "Run") -> None:
        self.steps = run.protocol.steps
        self.name = run.name
        self.signal: int | None = None
        self.row: dict[str, Any] = {}
        self.started: tuple[float, int] | None = None  # clock and step at the first step seen
        self.bar = progress("{task.completed}/{task.total}", "{task.fields[numbers]}")
        # Known before the bar starts, the steps of an earlier process do not count as speed.
        done = max(run.checkpoints.steps(), default=0)
        self.task = self.bar.add_task(
            run.name, total=self.steps, completed=done, numbers="starting"
        )

    def __enter__(self) -> Self:
        self.handlers = {number: signal.signal(number, self.on_signal) for number in SIGNALS}
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        for number, handler in self.handlers.items():
            signal.signal(number, handler)

    def close(self) -> None:
        self.bar.stop()

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        for stopping, handler in self.handlers.items():
            signal.signal(stopping, handler)
        say("Stopping: saving the state after this step (again to stop at once) ...")

    def should_stop(self) -> bool:
        return self.signal is not None

    def on_step(self, row: dict[str, Any]) -> None:
        self.row = row
        if self.started is None:
            self.started = time.monotonic(), row["step"]
        speed = row.get("tokens_per_second")
        numbers = f"loss {row['loss']:.3f}" + (f", {count(speed)} tokens/s" if speed else "")
        self.bar.update(self.task, completed=row["step"], numbers=numbers)

    def on_validation(self, row: dict[str, Any]) -> None:
        text = f"step {row['step']}/{self.steps}: validation loss {row['loss']:.4f}"
        if speed := self.row.get("tokens_per_second"):
            text += f", {count(speed)} tokens/s"
        if not stderr.is_terminal and (eta := self.eta()):
            text += f", ETA {duration(eta)}"
        say(f"{self.name}: {text}")

    def on_evaluation(self, split: str, done: int, total: int) -> None:
        self.bar.update(self.task, numbers=f"{split} {done / total:.0%}")

    def on_warning(self, text: str) -> None:
        warn(text)

    def eta(self) -> float | None:
        """Seconds left at the pace of this process so far, validation included."""
        if self.started is None:
            return None
        clock, first = self.started
        done = self.row["step"] - first
        return (time.monotonic() - clock) / done * (self.steps - self.row["step"]) if done else None
