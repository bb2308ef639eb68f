"""The training loop: steps, validation, checkpoints; exact after any interruption."""

import contextlib
import dataclasses
import math
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import torch

from smollm2.data import batch, window_count
from smollm2.device import (
    DTYPES,
    environment,
    matmul_flops_per_second,
    peak_memory_mb,
    reset_peak_memory,
    resolve_device,
    synchronize,
)
from smollm2.errors import RunBusy, RunError
from smollm2.evaluate import HeldOut, TextScore, held_out, held_out_rows, score_text
from smollm2.model import SmolLM2
from smollm2.moe import Routing
from smollm2.optim import Optimizer, lr_factor
from smollm2.protocol import Protocol
from smollm2.runs import STEP_TABLES, Run, now

if TYPE_CHECKING:
    from smollm2.data import TokenData

# The first steps after a start warm up allocators and compile; they are not timed.
UNTIMED_STEPS = 2
CHECKPOINT_SECONDS = 300.0


class NotFinite(RunError):
    """Loss or gradient became infinite or not a number."""


class NoMemory(RunError):
    """The model, its optimizer or a batch does not fit into memory."""


class Stopped(Exception):
    """The observer asked to stop; the state has been saved and the run can be resumed."""


class Observer:
    """What a caller is told while a run trains; the defaults ignore everything."""

    def should_stop(self) -> bool:
        """Asked after every step and every batch of an evaluation."""
        return False

    def on_step(self, row: dict[str, Any]) -> None:
        """A row of train.csv was written."""

    def on_validation(self, row: dict[str, Any]) -> None:
        """A row of val.csv was written."""

    def on_evaluation(self, split: str, done: int, total: int) -> None:
        """`done` of `total` tokens of a split have been scored."""

    def on_warning(self, text: str) -> None:
        """Something was not as it should be and has been dealt with."""


@dataclass(frozen=True)
class StepResult:
    """One forward and backward pass over the batch of a step, before the update."""

    loss: float
    gradient_norm: float
    routing: Routing | None


class Trainer:
    """A model, its optimizer and the tokens, at some step of a protocol."""

    def __init__(self, protocol: Protocol, data: "TokenData") -> None:
        self.protocol = protocol
        self.data = data
        self.step = 0  # updates made
        self.seconds = 0.0  # of timed training
        self.model = SmolLM2(protocol.model, protocol.seed).to(protocol.device)
        self.optimizer = Optimizer(self.model, protocol.recipe, DTYPES[protocol.dtype])
        if protocol.compile:
            self.model.compile_blocks()

    def gradients(self) -> StepResult:
        """Forward and backward over the micro-batches of the coming step."""
        protocol, recipe = self.protocol, self.protocol.recipe
        inputs, targets = batch(
            self.data.train,
            self.data.fingerprint,
            protocol.data_seed,
            self.step,
            protocol.rows_per_step,
            protocol.seq_len,
        )
        total = torch.zeros((), device=protocol.device)
        routings = []
        for start in range(0, protocol.rows_per_step, protocol.batch_size):
            rows = slice(start, start + protocol.batch_size)
            x = torch.from_numpy(inputs[rows]).to(protocol.device, non_blocking=True)
            y = torch.from_numpy(targets[rows]).to(protocol.device, non_blocking=True)
            loss, routing = self.model.loss(x, y)
            total += loss.detach() / recipe.grad_accum
            if routing is not None:
                loss = loss + recipe.balance_weight * routing.balance_loss
                routings.append(Routing(*(value.detach() for value in routing)))
            (loss / recipe.grad_accum).backward()
        norm = self.optimizer.gradient_norm()
        # Reading the numbers waits for the device: whether to update depends on them.
        return StepResult(total.item(), norm.item(), mean_over_batches(routings))

    def update(self, result: StepResult) -> float:
        """Apply the gradients; returns the learning rate used.

        Raises:
            NotFinite: loss or gradient are not; nothing has been changed.
        """
        if not (math.isfinite(result.loss) and math.isfinite(result.gradient_norm)):
            raise NotFinite(
                f"At step {self.step + 1} the loss is {result.loss} and the gradient norm "
                f"{result.gradient_norm}."
            )
        factor = lr_factor(self.protocol.recipe, self.step, self.protocol.steps)
        self.optimizer.step(factor, result.gradient_norm)
        self.step += 1
        return self.protocol.recipe.lr * factor


def mean_over_batches(routings: list[Routing]) -> Routing | None:
    """The routing of a step from that of its micro-batches, load still by layer."""
    if not routings:
        return None
    return Routing(
        torch.stack([r.balance_loss for r in routings]).mean(),
        torch.stack([r.load for r in routings]).mean(dim=0),
    )


def train(
    run: Run,
    data: "TokenData",
    observer: Observer,
    *,
    checkpoint_every: int | None = None,
    keep_steps: frozenset[int] = frozenset(),
) -> None:
    """Train `run` from its newest checkpoint, or its first step, to its end.

    Afterwards the run is finished: final weights, test scores in eval.csv, and no step checkpoints
    but those in `keep_steps`.

    Args:
        checkpoint_every: steps between checkpoints; None saves every five minutes. The two newest
            are kept while running.
        keep_steps: checkpoints to keep for good, in addition to those asked for in earlier calls.

    Raises:
        Stopped: the observer asked for it; the state is saved.
        RunBusy: another process is writing the run, or has just finished it.
        RunError: the loss is not finite, the disk cannot be written or memory does not suffice. The
            last good checkpoint is unharmed, and the manifest says what happened; of a run that
            does not fit into memory from its start nothing stays.
    """
    try:
        train_alone(run, data, observer, checkpoint_every, keep_steps)
    except NoMemory:
        if not any((run.path / f"{table}.csv").exists() for table in STEP_TABLES):
            run.remove()  # so that its name is free for one that fits
        raise


def train_alone(
    run: Run,
    data: "TokenData",
    observer: Observer,
    checkpoint_every: int | None,
    keep_steps: frozenset[int],
) -> None:
    """`train` while holding the run's lock."""
    with run.writing():
        run.read()  # another process may have finished it while this one prepared its tokens
        if run.is_finished:
            raise RunBusy(f"Run {run.name!r} has just been finished by another process.")
        try:
            Loop(run, data, observer, checkpoint_every, keep_steps).run_to_end()
        except Stopped:
            raise
        except Exception as error:
            failure = as_run_error(run, error)
            with contextlib.suppress(OSError):  # the disk may be what failed
                run.update(state="failed", error=str(failure))
            if failure is error:
                raise
            raise failure from error


def as_run_error(run: Run, error: Exception) -> Exception:
    """A full disk and full memory in a sentence; any other error as it is."""
    if isinstance(error, OSError):
        return RunError(
            f"Run {run.name!r} could not write its files: {error}. What was saved before is "
            "unharmed."
        )
    if run.protocol.compile:
        from torch._dynamo.exc import TorchDynamoException

        if isinstance(error, TorchDynamoException):
            reason = str(error).strip().partition("\n")[0]
            return RunError(f"The layers cannot be compiled here ({reason}); use --no-compile.")
    # A CPU allocation that fails is a plain RuntimeError, in these words on Windows and Linux.
    no_memory = any(words in str(error) for words in ("not enough memory", "can't allocate memory"))
    if no_memory or isinstance(error, MemoryError | torch.OutOfMemoryError):
        return NoMemory(
            "There is not enough memory for this model with this batch; try half the --batch-size "
            "with --grad-accum 2, a shorter --seq-len, or a smaller model."
        )
    return error


class Loop:
    """One process's share of a run: from where its files stand to the end."""

    def __init__(
        self,
        run: Run,
        data: "TokenData",
        observer: Observer,
        checkpoint_every: int | None,
        keep_steps: frozenset[int],
    ) -> None:
        self.run, self.observer = run, observer
        self.protocol = run.protocol
        self.checkpoint_every = checkpoint_every
        self.keep_steps = keep_steps | set(run.manifest["keep_steps"])
        self.saved_at = time.monotonic()
        resolve_device(self.protocol.device)  # a run may have come from another machine
        reset_peak_memory(self.protocol.device)  # of a run before this one in the process
        self.trainer = Trainer(self.protocol, data)
        self.recent: list[int] = []  # steps of the newest checkpoints
        self.restore()
        self.timed_from = self.trainer.step + UNTIMED_STEPS
        self.matmul_rate = matmul_flops_per_second(self.protocol.device, self.protocol.dtype)
        run.update(
            state="running",
            error=None,
            keep_steps=sorted(self.keep_steps),
            matmul_flops_per_second=self.matmul_rate,
        )

    def restore(self) -> None:
        """Load the newest good checkpoint and cut the tables back to its step; before the first
        one is saved, start over.

        Raises:
            RunError: there are checkpoints and none is good; all files stay as they are.
        """
        warnings: list[str] = []
        checkpoint = self.run.checkpoints.latest(warnings)
        for warning in warnings:
            self.observer.on_warning(warning)
        parent = self.run.manifest["started_from"]
        if checkpoint is None and (parent or self.run.checkpoints.has_any()):
            start = f", with --from {parent}" if parent else ""
            raise RunError(
                f"Run {self.run.name!r} has no good checkpoint left to go on from; its files are "
                f"as they were. Start it again under another --name{start}."
            )
        here = environment(self.protocol.device)
        for name in ("torch", "device_name", "threads"):
            if (before := self.run.manifest["environment"][name]) != here[name]:
                self.observer.on_warning(
                    f"{name} was {before} when the run started and is {here[name]} now: it goes "
                    "on, but not bit for bit as it would have there."
                )
        if checkpoint is not None:
            self.trainer.optimizer.load(checkpoint.tensors())
            self.trainer.step, self.trainer.seconds = checkpoint.step, checkpoint.seconds
            self.recent = [checkpoint.step]
        else:
            self.run.checkpoints.drop(frozenset())  # what a death in the first one left
        self.run.cut(self.trainer.step)

    def run_to_end(self) -> None:
        trainer, steps = self.trainer, self.protocol.steps
        validated = {int(row["step"]) for row in self.run.rows("val")}
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
            with contextlib.suppress(NotFinite):  # the last update may have spoilt the weights
                self.save()
            kept = "Nothing had been saved before."
            if self.recent:
                kept = f"The state after step {self.recent[-1]} is kept."
            raise NotFinite(f"{error} {kept} Try a lower --lr.") from None
        except RuntimeError:
            # Ctrl-C reaches the whole process group, and so ends a compiler that is at work.
            if not (self.protocol.compile and self.observer.should_stop()):
                raise
            self.stop()

    def stop(self) -> NoReturn:
        self.save()
        self.run.update(state="stopped")
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
        checkpoints.save(self.trainer.optimizer.state(), step, self.trainer.seconds)
        self.recent = [*self.recent, step][-2:]
        checkpoints.drop(self.keep_steps | set(self.recent))
        self.saved_at = time.monotonic()

    def check_weights(self) -> None:
        """Raise NotFinite rather than let weights that are not finite be saved."""
        if not self.trainer.optimizer.is_finite():
            raise NotFinite(f"After step {self.trainer.step} the weights are not finite.")

    def train_step(self) -> None:
        """One update and its row in train.csv; with each validation, the experts' loads."""
        trainer, protocol = self.trainer, self.protocol
        start = time.perf_counter()
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
            seconds = time.perf_counter() - start
            trainer.seconds += seconds
            flops_per_second = protocol.flops_per_step / seconds
            row["tokens_per_second"] = round(protocol.tokens_per_step / seconds, 1)
            row["mfu"] = round(flops_per_second / self.matmul_rate, 4)
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
        """A row of val.csv."""
        protocol, step = self.protocol, self.trainer.step
        scores = self.evaluate("validation", protocol.validation_tokens)
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

    def evaluate(self, split: str, n_tokens: int) -> HeldOut:
        protocol, trainer = self.protocol, self.trainer
        scores: list[TextScore] = []
        for found in score_text(
            trainer.model,
            trainer.data,
            split,
            protocol.seq_len,
            protocol.batch_size,
            range(window_count(getattr(trainer.data, split), protocol.seq_len, n_tokens)),
        ):
            scores += found
            self.observer.on_evaluation(split, sum(s.n_tokens for s in scores), n_tokens)
            if self.observer.should_stop():
                raise Stopped
        return held_out(scores)

    def finish(self) -> None:
        """Final weights and test scores, then the state `finished`, then the cleaning up."""
        run, trainer, protocol = self.run, self.trainer, self.protocol
        self.check_weights()
        weights = {f"model.{name}": master for name, master in trainer.optimizer.masters.items()}
        run.checkpoints.save(weights, trainer.step, trainer.seconds, is_final=True)
        scores = self.evaluate("test", protocol.test_tokens)
        rows = held_out_rows("test", scores, trainer.data, protocol.seq_len, protocol.final_test)
        run.replace("eval", rows)
        run.update(state="finished", finished_at=now())
        run.checkpoints.drop(self.keep_steps)


def expert_loads(routing: Routing) -> Iterator[tuple[int, int, float]]:
    for layer, loads in enumerate(routing.load.tolist()):
        for expert, load in enumerate(loads):
            yield layer, expert, load


@dataclass(frozen=True)
class Probe:
    """What one step costs on this machine, for a plan; measured without compilation."""

    step_seconds: float
    activation_bytes: int  # saved for the backward pass of one micro-batch


def probe(protocol: Protocol, data: "TokenData") -> Probe:
    """Train one sequence, then time more and one update; keep nothing.

    One second's worth is timed, at least one sequence: one of a large model, many of a small one.
    """
    recipe = dataclasses.replace(protocol.recipe, grad_accum=1)
    single = dataclasses.replace(protocol, batch_size=1, compile=False, recipe=recipe)
    trainer = Trainer(single, data)
    saved: dict[int, int] = {}  # bytes by memory address: views share it

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        trainer.gradients()
    weights = {p.untyped_storage().data_ptr() for p in trainer.model.parameters()}
    activations = sum(size for address, size in saved.items() if address not in weights)
    seconds: list[float] = []
    while sum(seconds) < 1.0:
        start = time.perf_counter()
        result = trainer.gradients()
        seconds.append(time.perf_counter() - start)
    start = time.perf_counter()
    trainer.update(result)
    synchronize(protocol.device)
    update_seconds = time.perf_counter() - start
    return Probe(
        statistics.median(seconds) * protocol.rows_per_step + update_seconds,
        activations * protocol.batch_size,
    )
