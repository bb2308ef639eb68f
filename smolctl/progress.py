"""What a person sees while a run trains, and the signals that stop it."""

import signal
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
        self.tokens_per_step = run.protocol.tokens_per_step
        self.name = run.name
        self.compiles = run.protocol.compile
        self.signal: int | None = None
        self.bar = progress("{task.completed}/{task.total}", "{task.fields[numbers]}")
        # Known before the bar starts, the steps of an earlier process do not count as speed.
        done = max(run.checkpoints.steps(), default=0)
        self.task = self.bar.add_task(
            run.name, total=self.steps, completed=done, numbers="starting"
        )

    def __enter__(self) -> Self:
        self.handlers = {number: signal.signal(number, self.on_signal) for number in SIGNALS}
        if self.compiles:
            say(f"{self.name}: its layers are compiled first, which can take half a minute.")
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
        """Tokens a second over the last steps, validation included, as the ETA is reckoned."""
        speed = self.bar.tasks[0].speed  # steps a second, None before the second step
        return f", {count(speed * self.tokens_per_step)} tokens/s" if speed else ""
