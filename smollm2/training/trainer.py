"""One training step: gradients over the micro-batches, then the update."""

import dataclasses
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from smollm2.data import batch
from smollm2.device import DTYPES, synchronize
from smollm2.errors import RunError
from smollm2.evaluation.text import TextScore, score_text
from smollm2.model.moe import Routing
from smollm2.model.transformer import SmolLM2
from smollm2.protocol.run_config import ResolvedConfig
from smollm2.training.active_clock import ActiveClock
from smollm2.training.masters import Optimizer
from smollm2.training.memory import require_memory
from smollm2.training.schedule import lr_factor

if TYPE_CHECKING:
    from smollm2.data import TokenData
    from smollm2.training.fully_sharded import FullySharded
    from smollm2.training.world import World


class NotFinite(RunError):
    """Loss or gradient became infinite or not a number."""


@dataclass(frozen=True)
class StepResult:
    """One forward and backward pass over the batch of a step, before the update."""

    loss: float
    gradient_norm: float
    routing: Routing | None


class Trainer:
    """A model, its optimizer and its tokens at some step of a run.

    Args:
        world: the processes that train together, each of which has such an object and calls its
            methods in the same order; None if this one trains alone.

    Raises:
        TooLarge: it can never fit into this machine's memory.
    """

    def __init__(
        self, protocol: ResolvedConfig, data: "TokenData", world: "World | None" = None
    ) -> None:
        require_memory(protocol, world)
        self.protocol = protocol
        self.data = data
        self.step = 0  # updates made
        self.seconds = 0.0  # of timed training
        self.model = SmolLM2(protocol.model, protocol.seed)
        if world is None or not world.is_sharded:  # else block by block, as it is divided
            self.model.to(protocol.device)
        self.world = world
        self.optimizer = self.new_optimizer()
        if protocol.compile:
            self.model.compile_blocks(protocol.micro_batch_size, protocol.seq_len)

    def new_optimizer(self) -> "Optimizer | FullySharded":
        """The optimizer of the model, which it converts to the dtype of the run."""
        model, recipe, dtype = self.model, self.protocol.recipe, DTYPES[self.protocol.dtype]
        if self.world is None:
            return Optimizer(model, recipe, dtype)
        if self.world.is_sharded:
            from smollm2.training.fully_sharded import FullySharded

            return FullySharded(model, recipe, dtype, self.protocol.device, self.world)
        from smollm2.training.shared_masters import SharedOptimizer

        return SharedOptimizer(model, recipe, dtype, self.world)

    def state(self) -> dict[str, torch.Tensor]:
        """All that a checkpoint holds; nothing on processes other than the first."""
        return self.optimizer.state()

    def final_weights(self) -> dict[str, torch.Tensor]:
        """The weights in fp32, as `state` has them."""
        return self.optimizer.final_weights()

    def load(self, tensors: dict[str, torch.Tensor], step: int, seconds: float) -> None:
        """Continue from the `state` after a step; that of the first process counts."""
        self.optimizer.load(tensors)
        self.step, self.seconds = step, seconds

    def is_finite(self) -> bool:
        """Whether every weight is a finite number."""
        return self.optimizer.is_finite()

    def gradients(self) -> StepResult:
        """Forward and backward over the micro-batches of the next step."""
        protocol, recipe = self.protocol, self.protocol.recipe
        inputs, targets = batch(
            self.data.train,
            self.data.fingerprint,
            protocol.data_seed,
            self.step + protocol.batch_offset,
            protocol.rows_per_step,
            protocol.seq_len,
            protocol.data_order,
        )
        own = self.world.own(recipe.grad_accum) if self.world else range(recipe.grad_accum)
        losses, routings = [], []
        for number in own:
            start = number * protocol.micro_batch_size
            rows = slice(start, start + protocol.micro_batch_size)
            x = torch.from_numpy(inputs[rows]).to(protocol.device, non_blocking=True)
            y = torch.from_numpy(targets[rows]).to(protocol.device, non_blocking=True)
            loss, routing = self.model.loss(x, y)
            losses.append(loss.detach())
            if routing is not None:
                loss = loss + recipe.balance_weight * routing.balance_loss
                routings.append(Routing(*(value.detach() for value in routing)))
            (loss / recipe.grad_accum).backward()
        norm = self.optimizer.gradient_norm()
        if self.world:
            losses = self.world.in_order(losses)
            each = (self.world.in_order(list(values)) for values in zip(*routings, strict=True))
            routings = [Routing(*values) for values in zip(*each, strict=True)]
        total = torch.zeros((), device=protocol.device)
        for loss in losses:
            total += loss / recipe.grad_accum
        # Reading the numbers waits for the device: whether to update depends on them.
        return StepResult(total.item(), norm.item(), mean_over_batches(routings))

    def scores(self, split: str, numbers: Sequence[int]) -> Iterator[list[TextScore]]:
        """Score the windows `numbers` of a split, and yield some at a time."""
        protocol = self.protocol
        return score_text(
            *(self.model, self.data, split, protocol.seq_len, protocol.micro_batch_size), numbers
        )

    def update(self, result: StepResult) -> float:
        """Apply the gradients; returns the learning rate used.

        Raises:
            NotFinite: the loss or the gradient is not; nothing has changed.
        """
        require_finite_result(result, self.step)
        factor = lr_factor(self.protocol.recipe, self.step, self.protocol.steps)
        self.optimizer.step(factor, result.gradient_norm)
        self.step += 1
        return self.protocol.recipe.lr * factor


def require_finite_result(result: StepResult, step: int) -> None:
    """Raise `NotFinite` if the loss or the gradient after so many updates is not finite."""
    if not (math.isfinite(result.loss) and math.isfinite(result.gradient_norm)):
        raise NotFinite(
            f"At step {step + 1} the loss is {result.loss} and the gradient norm "
            f"{result.gradient_norm}."
        )


def mean_over_batches(routings: list[Routing]) -> Routing | None:
    """The routing of a step from that of its micro-batches, load still by layer."""
    if not routings:
        return None
    return Routing(
        torch.stack([r.balance_loss for r in routings]).mean(),
        torch.stack([r.load for r in routings]).mean(dim=0),
    )


@dataclass(frozen=True)
class Probe:
    """The cost of one step on this machine, measured without compilation."""

    step_seconds: float
    activation_bytes: int  # saved for the backward pass of one micro-batch


def probe(protocol: ResolvedConfig, data: "TokenData", at_least: float = 1.0) -> Probe:
    """Train one sequence, then time more of them and one update; the model is discarded.

    Sequences are timed for `at_least` seconds, at least one.
    """
    recipe = dataclasses.replace(protocol.recipe, grad_accum=1)
    single = dataclasses.replace(protocol, micro_batch_size=1, compile=False, recipe=recipe)
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
    with ActiveClock() as clock:
        while sum(seconds) < at_least:
            start = clock.seconds()
            result = trainer.gradients()
            seconds.append(clock.seconds() - start)
        start = clock.seconds()
        trainer.update(result)
        synchronize(protocol.device)
        update_seconds = clock.seconds() - start
    return Probe(
        statistics.median(seconds) * protocol.rows_per_step + update_seconds,
        activations * protocol.micro_batch_size,
    )


@dataclass(frozen=True)
class TimedSteps:
    """Seconds that a number of training steps took."""

    seconds: float
    steps: int


def timed_steps(
    protocol: ResolvedConfig,
    data: "TokenData",
    least_steps: int = 1,
    at_least: float = 1.0,
    ready: Callable[[], object] = lambda: None,
) -> TimedSteps:
    """Time training steps as a run of `protocol` makes them; the model is discarded.

    The first step is not timed: it allocates memory and, if asked for, compiles.

    Args:
        least_steps, at_least: the steps and the seconds that it takes at the least.
        ready: called before the first timed step, such as to wait for other processes.

    Raises:
        TooLarge, NotFinite: see `Trainer`.
    """
    trainer = Trainer(protocol, data)
    trainer.update(trainer.gradients())
    synchronize(protocol.device)
    ready()
    steps, seconds = 0, 0.0
    with ActiveClock() as clock:
        start = clock.seconds()
        while steps < least_steps or seconds < at_least:
            trainer.step %= protocol.steps  # a run may be shorter than a block
            trainer.update(trainer.gradients())
            synchronize(protocol.device)
            steps, seconds = steps + 1, clock.seconds() - start
    return TimedSteps(seconds, steps)
