"""Progress of a training run, and the signals that stop it."""

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any, Self

import typer

from smolctl.cli.console import bar, say, stderr, warn
from smolctl.studies.tracking import tracked
from smolctl.units import count, duration
from smollm2.training.loop import Observer, Stopped

if TYPE_CHECKING:
    from smollm2.runs.run import Run

HANG_UP = getattr(signal, "SIGHUP", None)  # the terminal or the connection closed; not on Windows
SIGNALS = [signal.SIGINT, signal.SIGTERM, *filter(None, [HANG_UP])]


class TrainingProgress(Observer):
    """A progress bar on a terminal, a line at each validation elsewhere.

    The first signal lets the trainer save and stop; a second one stops at once, as does one before
    the model is built, when there is nothing new to save.

    Args:
        is_patient: a second signal is ignored: it may be the first one, passed on by a launcher,
            which kills what does not stop.
    """

    def __init__(self, run: "Run", *, is_patient: bool = False) -> None:
        self.steps = run.protocol.steps
        self.tokens_per_step = run.protocol.tokens_per_step
        self.name = run.name
        self.compiles = run.protocol.compile
        self.is_patient = is_patient
        self.signal: int | None = None
        self.has_started = False
        self.handlers: dict[int, Any] = {}  # those of before, by signal
        self.bar = bar("{task.completed}/{task.total}", "{task.fields[numbers]}")
        # Set before the bar starts, so that steps of an earlier process do not count as speed.
        done = max(run.checkpoints.steps(), default=0)
        self.task = self.bar.add_task(
            run.name, total=self.steps, completed=done, numbers="starting"
        )

    def __enter__(self) -> Self:
        self.handlers = handle_signals(self.on_signal)
        if self.compiles:
            say(f"{self.name}: compiling the layers, which can take half a minute ...")
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        for number, handler in self.handlers.items():
            signal.signal(number, handler)

    def close(self) -> None:
        self.bar.stop()

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        is_first, self.signal = self.signal is None, number
        if not self.is_patient:
            for stopping, handler in self.handlers.items():
                signal.signal(stopping, handler)
        elif not is_first:
            return
        if not self.has_started:
            raise Stopped
        say("Stopping: saving the state after this step (again to stop at once) ...")

    def on_start(self) -> None:
        self.has_started = True

    def should_stop(self) -> bool:
        return self.signal is not None

    def on_step(self, row: dict[str, Any]) -> None:
        self.bar.update(self.task, completed=row["step"])
        self.bar.update(self.task, numbers=f"loss {row['loss']:.3f}{self.speed_text()}")

    def on_validation(self, row: dict[str, Any]) -> None:
        text = f"step {row['step']}/{self.steps}: validation loss {row['loss']:.4f}"
        text += self.speed_text()
        left = self.steps - row["step"]
        if not stderr.is_terminal and left and (speed := self.bar.tasks[0].speed):
            text += f", ETA {duration(left / speed)}"
        say(f"{self.name}: {text}")

    def on_evaluation(self, split: str, done: int, total: int) -> None:
        self.bar.update(self.task, numbers=f"{split} {done / total:.0%}")

    def on_warning(self, text: str) -> None:
        warn(text)

    def speed_text(self) -> str:
        """Tokens per second over the last steps, validation included, like the ETA."""
        speed = self.bar.tasks[0].speed  # steps/s; None before the second step
        return f", {count(speed * self.tokens_per_step)} tokens/s" if speed else ""


def handle_signals(handler: Callable[[int, FrameType | None], None]) -> dict[int, Any]:
    """Have `handler` called on the signals that stop a training; returns the handlers of before."""
    before: dict[int, Any] = {}
    for number in SIGNALS:
        # `nohup` ignores it, so that a closed terminal stops nothing.
        if number != HANG_UP or signal.getsignal(number) is not signal.SIG_IGN:
            before[number] = signal.signal(number, handler)
    return before


@contextlib.contextmanager
def observed(
    run: "Run", track: str | None, how_to_continue: str, *, is_patient: bool = False
) -> Iterator[Observer]:
    """The observer of a training run: its progress (see `TrainingProgress`), and the tracker
    `track`.

    Raises:
        typer.Exit: a signal stopped the run; `how_to_continue` has been printed.
    """
    progress = TrainingProgress(run, is_patient=is_patient)
    try:
        with progress, tracked(progress, run, track) as observer:
            yield observer
    except Stopped:
        saved = "Stopped and saved" if progress.has_started else "Stopped before the first step"
        say(f"{saved}. {how_to_continue}")
        raise typer.Exit(128 + (progress.signal or signal.SIGINT)) from None
