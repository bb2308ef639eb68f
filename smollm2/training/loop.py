"""The training loop: steps, validation, checkpoints.

A resumed run ends bit for bit as an uninterrupted one.
"""

import contextlib
import math
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NoReturn

from smollm2.device import (
    environment,
    matmul_flops_per_second,
    peak_memory_mb,
    reset_peak_memory,
    resolve_device,
    synchronize,
)
from smollm2.errors import RunBusy, RunError
from smollm2.evaluation.text import TextScore, held_out
from smollm2.model.moe import Routing
from smollm2.runs.manifest import RunState, now
from smollm2.runs.manifest_types import LONGEST
from smollm2.runs.run import STEP_TABLES, Run
from smollm2.runs.step_rows import missing_rows
from smollm2.training.active_clock import ActiveClock
from smollm2.training.failures import NoMemory, as_run_error
from smollm2.training.final_scores import final_text, floors_of, record_final, windows_of
from smollm2.training.memory import TooLarge
from smollm2.training.parallel import Leader
from smollm2.training.trainer import NotFinite, Trainer
from smollm2.training.world import ProcessLost

if TYPE_CHECKING:
    from smollm2.data import TokenData
    from smollm2.training.world import World

# The first steps after a start warm up allocators and compile; they are not timed.
UNTIMED_STEPS = 2
CHECKPOINT_SECONDS = 300.0


class Stopped(Exception):
    """The observer asked to stop; the state has been saved and the run can be resumed."""


class Observer:
    """Events of a training run; the defaults ignore them."""

    def on_start(self) -> None:
        """The model is built and the state restored: from now on `should_stop` is asked. An earlier
        stop is a `Stopped` that the observer raises."""

    def should_stop(self) -> bool:
        """Called after every step and every batch of an evaluation."""
        return False

    def on_step(self, row: dict[str, Any]) -> None:
        """A row of train.csv was written."""

    def on_validation(self, row: dict[str, Any]) -> None:
        """A row of val.csv was written."""

    def on_evaluation(self, split: str, done: int, total: int) -> None:
        """`done` of `total` tokens of a split have been scored."""

    def on_warning(self, text: str) -> None:
        """A problem was found and handled."""


def train(
    run: Run,
    data: "TokenData",
    observer: Observer,
    *,
    checkpoint_every: int | None = None,
    keep_steps: frozenset[int] = frozenset(),
    at_once: int = 1,
    world: "World | None" = None,
) -> None:
    """Train `run` from its newest checkpoint, or its first step, to its end.

    Afterwards the run is finished: final weights, its scores (see `final_text`) in eval.csv and
    documents.csv, and no step checkpoints but those in `keep_steps`.

    Args:
        checkpoint_every: steps between checkpoints; None saves every five minutes. The two newest
            are kept while running.
        keep_steps: checkpoints to keep permanently, in addition to those of earlier calls.
        at_once: how many runs the caller has the machine train at the same time.
        world: the processes that train it together; this is the first, and the others `follow`.

    Raises:
        Stopped: the observer asked for it; the state is saved.
        RunBusy: another process is writing the run, or has just finished it.
        RunError: the loss is not finite, the disk cannot be written or memory does not suffice. The
            last good checkpoint is unharmed, and the manifest says what happened. A run that never
            fitted into memory is removed.
        ProcessLost: another process has ended or does not answer; the run counts as interrupted.
    """
    try:
        train_alone(run, data, observer, checkpoint_every, keep_steps, at_once, world)
    except (NoMemory, TooLarge):
        if not any((run.path / f"{table}.csv").exists() for table in STEP_TABLES):
            run.remove()  # frees its name for a model that fits
        raise
    finally:
        if world:
            world.release()


def train_alone(
    run: Run,
    data: "TokenData",
    observer: Observer,
    checkpoint_every: int | None,
    keep_steps: frozenset[int],
    at_once: int,
    world: "World | None",
) -> None:
    """`train` while holding the run's lock."""
    known = run.failed_at
    with run.writing():
        run.read()  # another process may have finished it while this one prepared its tokens
        if run.is_finished:
            raise RunBusy(f"Run {run.name!r} has just been finished by another process.")
        if run.state is RunState.FAILED and run.failed_at != known:
            raise RunBusy(f"Run {run.name!r} has just failed in another process.")
        try:
            with ActiveClock() as clock:
                loop = Loop(
                    run, data, observer, checkpoint_every, keep_steps, clock, at_once, world
                )
                loop.run_to_end()
        except Stopped:
            with contextlib.suppress(OSError):  # the run then counts as interrupted
                run.update(state=RunState.STOPPED)
            raise
        except ProcessLost:
            raise
        except Exception as error:
            failure = as_run_error(run, error)
            with contextlib.suppress(OSError):  # the disk may be what failed
                run.update(
                    state=RunState.FAILED,
                    error=str(failure)[:LONGEST],
                    failed_at=now(),
                    diverged=isinstance(failure, NotFinite),
                )
            if failure is error:
                raise
            raise failure from error


class Loop:
    """Trains a run from its newest checkpoint to its end."""

    def __init__(
        self,
        run: Run,
        data: "TokenData",
        observer: Observer,
        checkpoint_every: int | None,
        keep_steps: frozenset[int],
        clock: ActiveClock,
        at_once: int,
        world: "World | None",
    ) -> None:
        self.run, self.observer, self.clock, self.world = run, observer, clock, world
        self.protocol = run.protocol
        self.checkpoint_every = checkpoint_every
        self.keep_steps = keep_steps | set(run.manifest["keep_steps"])
        self.saved_at = time.monotonic()
        resolve_device(self.protocol.device)  # a run may have come from another machine
        reset_peak_memory(self.protocol.device)  # an earlier run in this process set it
        self.trainer = Leader(self.protocol, data, world) if world else Trainer(self.protocol, data)
        self.recent: list[int] = []  # steps of the newest checkpoints
        self.restore()
        self.timed_from = self.trainer.step + UNTIMED_STEPS
        self.matmul_rate = matmul_flops_per_second(self.protocol.device, self.protocol.dtype)
        self.n_processes = world.size if world else 1
        trained_by = {*run.manifest.get("processes", ()), self.n_processes}
        run.update(
            state=RunState.RUNNING,
            error=None,
            failed_at=None,
            diverged=False,
            keep_steps=sorted(self.keep_steps),
            at_once=max(run.at_once, at_once, 1 + run.others_being_written()),
            processes=sorted(trained_by),
            **({"parallel": "fsdp"} if world and world.is_sharded else {}),
            matmul_flops_per_second=self.matmul_rate,
        )

    def restore(self) -> None:
        """Load the newest checkpoint that is good, with tables that are whole up to its step, and
        cut them back to it; start over if none was saved.

        Raises:
            RunError: there are checkpoints and none is good; no file is changed.
        """
        warnings: list[str] = []
        checkpoint = self.run.checkpoints.latest(
            warnings, lambda step: missing_rows(self.run, step)
        )
        for warning in warnings:
            self.observer.on_warning(warning)
        parent = self.run.manifest["started_from"]
        if checkpoint is None and (parent or self.run.checkpoints.has_any()):
            start = f", with `started_from={parent}`" if parent else ""
            raise RunError(
                f"Run {self.run.name!r} has no good checkpoint left to resume from; its files are "
                "unchanged. Put back what is missing, or start it again under another "
                f"`name`{start}."
            )
        here = environment(self.protocol.device)
        for name in ("torch", "device_name", "threads"):
            if (before := self.run.manifest["environment"][name]) != here[name]:
                self.observer.on_warning(
                    f"{name} was {before} when the run started and is {here[name]} now: it "
                    "continues, but not bit for bit as it would have there."
                )
        if checkpoint is not None:
            try:
                self.trainer.load(checkpoint.tensors(), checkpoint.step, checkpoint.seconds)
            except ProcessLost:
                raise
            except (KeyError, RuntimeError) as error:
                if as_run_error(self.run, error) is not error:
                    raise  # no memory
                raise RunError(
                    f"{checkpoint.name} is not of the model in run.json ({error!s:.200})."
                ) from error
            self.recent = [checkpoint.step]
        else:
            self.run.checkpoints.drop(frozenset())  # a first one that was not completed
        self.run.cut(self.trainer.step)

    def run_to_end(self) -> None:
        trainer, steps = self.trainer, self.protocol.steps
        validated = {int(row["step"]) for row in self.run.rows("val")}
        self.observer.on_start()
        try:
            while True:
                if self.is_validation_step() and trainer.step not in validated:
                    self.validate()
                if self.observer.should_stop():
                    raise Stopped
                if self.is_checkpoint_due():
                    self.save()
                if trainer.step == steps:
                    break
                self.train_step()
            self.finish()
        except Stopped:
            self.stop()
        except NotFinite as error:
            with contextlib.suppress(NotFinite):  # the last update may have ruined the weights
                self.save()
            kept = "Nothing had been saved before."
            if self.recent:
                kept = f"The state after step {self.recent[-1]} is kept."
            raise NotFinite(f"{error} {kept} Try a lower `lr`.") from None
        except ProcessLost:
            raise
        except RuntimeError:
            # Ctrl-C reaches the whole process group, and so kills a running compiler.
            if not (self.protocol.compile and self.observer.should_stop()):
                raise
            self.stop()

    def stop(self) -> NoReturn:
        self.save()
        raise Stopped

    def is_validation_step(self) -> bool:
        step = self.trainer.step
        return step % self.protocol.validation_every == 0 or step == self.protocol.steps

    def is_checkpoint_due(self) -> bool:
        step = self.trainer.step
        if step in self.keep_steps:
            return True
        if self.checkpoint_every is None:
            return time.monotonic() - self.saved_at > CHECKPOINT_SECONDS
        return step > 0 and step % self.checkpoint_every == 0

    def save(self) -> None:
        step = self.trainer.step
        if step in self.recent:
            return
        self.check_weights()
        checkpoints = self.run.checkpoints
        checkpoints.save(self.trainer.state(), step, self.trainer.seconds)
        self.recent = [*self.recent, step][-2:]
        checkpoints.drop(self.keep_steps | set(self.recent))
        self.saved_at = time.monotonic()

    def check_weights(self) -> None:
        """Raise NotFinite if a weight is not finite, so that it is not saved."""
        if not self.trainer.is_finite():
            raise NotFinite(f"After step {self.trainer.step} the weights are not finite.")

    def train_step(self) -> None:
        """Make one update and write its row of train.csv; before a validation, also experts.csv."""
        trainer, protocol = self.trainer, self.protocol
        start = self.clock.seconds()
        result = trainer.gradients()
        lr = trainer.update(result)
        synchronize(protocol.device)
        row: dict[str, Any] = {
            "step": trainer.step,
            "tokens": trainer.step * protocol.tokens_per_step,
            "loss": result.loss,
            "lr": lr,
            "grad_norm": result.gradient_norm,
            "peak_memory_mb": round(peak_memory_mb(protocol.device), 1),
        }
        if trainer.step > self.timed_from:
            seconds = self.clock.seconds() - start
            trainer.seconds += seconds
            flops_per_second = protocol.flops_per_step / seconds
            row["tokens_per_second"] = round(protocol.tokens_per_step / seconds, 1)
            row["mfu"] = round(flops_per_second / (self.matmul_rate * self.n_processes), 4)
        row["seconds"] = round(trainer.seconds, 4)
        if result.routing is not None:
            row["balance_loss"] = result.routing.balance_loss.item()
            row["expert_load_min"] = result.routing.load.min().item()
            row["expert_load_max"] = result.routing.load.max().item()
            if self.is_validation_step():
                for layer, expert, load in expert_loads(result.routing):
                    loads = {"step": trainer.step, "layer": layer, "expert": expert, "load": load}
                    self.run.append("experts", loads)
        self.run.append("train", row)
        self.observer.on_step(row)

    def validate(self) -> None:
        """Score the validation split and write a row of val.csv."""
        protocol, step = self.protocol, self.trainer.step
        scores = held_out(self.evaluate("validation", protocol.validation_tokens))
        row = {
            "step": step,
            "tokens": step * protocol.tokens_per_step,
            "flops": step * protocol.flops_per_step,
            "seconds": round(self.trainer.seconds, 4),
            "loss": scores.loss.value,
            "accuracy": scores.accuracy.value,
            "perplexity": scores.perplexity.value,
            "bits_per_byte": scores.bits_per_byte.value,
        }
        self.run.append("val", row)
        self.observer.on_validation(row)

    def evaluate(self, split: str, n_tokens: int) -> list[TextScore]:
        """Score `n_tokens` of a split, or all of it if it has fewer.

        Raises:
            Stopped: the observer asked for it.
            NotFinite: their loss is not.
        """
        protocol, trainer = self.protocol, self.trainer
        numbers = windows_of(protocol, getattr(trainer.data, split), n_tokens)
        total = len(numbers) * protocol.seq_len
        scores: list[TextScore] = []
        done = 0
        for found in trainer.scores(split, numbers):
            scores += found
            done += sum(score.n_tokens for score in found)
            self.observer.on_evaluation(split, done, total)
            if self.observer.should_stop():
                raise Stopped
        loss = held_out(scores).loss.value
        if not math.isfinite(loss):
            raise NotFinite(f"After step {trainer.step} the {split} loss is {loss}.")
        return scores

    def finish(self) -> None:
        """Save the final weights and scores, mark the run finished, then drop checkpoints."""
        run, trainer, text = self.run, self.trainer, final_text(self.run)
        self.check_weights()
        if what := missing_rows(run, trainer.step, ended=True):
            raise RunError(f"{what}: it was changed during the training. Resume to train it again.")
        weights = trainer.final_weights()
        run.checkpoints.save(weights, trainer.step, trainer.seconds, is_final=True)
        record_final(run, trainer.data, self.evaluate(text.split, text.n_tokens))
        if self.world:
            self.world.release()
        floors = floors_of(run, trainer.data)
        run.update(state=RunState.FINISHED, finished_at=now(), floors=floors)
        run.checkpoints.drop(self.keep_steps)


def expert_loads(routing: Routing) -> Iterator[tuple[int, int, float]]:
    """Layer, expert and its share of the tokens, for every expert."""
    for layer, loads in enumerate(routing.load.tolist()):
        for expert, load in enumerate(loads):
            yield layer, expert, load
