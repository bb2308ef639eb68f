"""Training on several processes, with the bits of one.

Micro-batch m of a step is computed by process m mod W. Process 0 runs the training's `Loop`; it
alone writes files, reads the clock and talks. Before it does anything that takes all processes, it
announces it, and the others `follow`.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from smollm2.evaluation.text import TextScore
from smollm2.protocol.run_config import ResolvedConfig
from smollm2.training.trainer import StepResult, Trainer, require_finite_result
from smollm2.training.world import Work, World

if TYPE_CHECKING:
    from smollm2.data import TokenData


class Leader(Trainer):
    """The trainer of process 0: whatever it does, the others do too."""

    world: World

    def gradients(self) -> StepResult:
        with self.world.doing(Work.GRADIENTS):
            return super().gradients()

    def update(self, result: StepResult) -> float:
        require_finite_result(result, self.step)
        with self.world.doing(Work.UPDATE):
            return super().update(result)

    def is_finite(self) -> bool:
        with self.world.doing(Work.IS_FINITE):
            return super().is_finite()

    def state(self) -> dict[str, Tensor]:
        with self.world.doing(Work.STATE):
            return super().state()

    def final_weights(self) -> dict[str, Tensor]:
        with self.world.doing(Work.FINAL_WEIGHTS):
            return super().final_weights()

    def load(self, tensors: dict[str, Tensor], step: int, seconds: float) -> None:
        for name, parameter in self.optimizer.parameters.items():
            if tensors[f"model.{name}"].shape != parameter.shape:
                raise RuntimeError(f"{name} has another shape")
        with self.world.doing(Work.LOAD):
            self.world.told((step, seconds))
            super().load(tensors, step, seconds)

    def scores(self, split: str, numbers: Sequence[int]) -> Iterator[list[TextScore]]:
        with self.world.doing(Work.SCORES):
            self.world.told((split, list(numbers)))
        scoring = in_turns(self, self.world, split, numbers)
        found: list[TextScore] | None = []
        while found is not None:
            if found:
                yield found
            with self.world.doing(Work.ROUND):
                found = next(scoring, None)


def in_turns(
    trainer: Trainer, world: World, split: str, numbers: Sequence[int]
) -> Iterator[list[TextScore]]:
    """Score the batches of `Trainer.scores`, in each round one on every process. Process 0 yields
    those of all, and the others nothing but empty lists."""
    size = trainer.protocol.micro_batch_size
    batches = [numbers[first : first + size] for first in range(0, len(numbers), size)]
    rounds = range(0, len(batches), world.size)
    # A process without a batch in the last round repeats the last one: all compute alike.
    own = (batches[min(first + world.rank, len(batches) - 1)] for first in rounds)
    mine = [number for batch in own for number in batch]
    found = Trainer.scores(trainer, split, mine)
    for first in rounds:
        of_all = world.collected(next(found))
        yield [score for scores in of_all[: len(batches) - first] for score in scores]


def follow(protocol: ResolvedConfig, data: "TokenData", world: World) -> None:
    """Do what process 0 does until it lets this one end.

    Raises:
        ProcessLost: another process has ended or does not answer.
    """
    trainer = Trainer(protocol, data, world)
    result: StepResult | None = None
    scoring: Iterator[list[TextScore]] = iter(())
    while (work := world.announced()) is not Work.END:
        match work:
            case Work.GRADIENTS:
                result = trainer.gradients()
            case Work.UPDATE:
                assert result is not None
                trainer.update(result)
            case Work.IS_FINITE:
                trainer.is_finite()
            case Work.STATE:
                trainer.state()
            case Work.FINAL_WEIGHTS:
                trainer.final_weights()
            case Work.LOAD:
                trainer.load({}, *world.told(None))
            case Work.SCORES:
                scoring = in_turns(trainer, world, *world.told(None))
            case Work.ROUND:
                next(scoring, None)
