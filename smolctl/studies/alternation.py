"""Measures arms in turns within one process, so that what drifts in the machine favours none.

A round goes there and back: A B C, C B A. The places of every arm have the same mean, so a drift
that is linear within a round cancels (for two arms this is the ABBA design). Before and after each
block the machine itself is measured, by its rate of multiplying matrices: a block in which that
fell is measured again.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

import torch

from smolctl.studies.machine import warn_if_busy
from smolctl.studies.plan import PlannedRun
from smolctl.studies.speed_plan import SpeedPlan
from smolctl.studies.study_file import Study
from smolctl.talk import progress, say, warn
from smollm2.data import TokenData
from smollm2.device import device_name, matmul_rate_now
from smollm2.errors import RunError, UserError
from smollm2.protocol.run_config import ResolvedConfig
from smollm2.runs.speed_table import (
    SpeedBlock,
    by_round,
    has_fallen,
    is_same_cost,
    read_speed,
    write_speed,
)
from smollm2.training.trainer import timed_steps

T = TypeVar("T")

MOST_REPEATS = 3  # of a block; then it is kept, with its rate beside it


@dataclass(frozen=True)
class Turn(Generic[T]):
    """What was measured of an arm in one block; see `SpeedBlock`."""

    position: int
    arm: str
    found: T
    matmul_rate: float
    repeats: int


class Alternation(Generic[T]):
    """Measures arms in turns.

    Args:
        measure: measures a block of an arm.
        rate: measures the machine's rate of multiplying matrices.
        best: the best rate seen before.
    """

    def __init__(
        self, measure: Callable[[str], T], rate: Callable[[], float], best: float = 0.0
    ) -> None:
        self.measure, self.rate, self.best = measure, rate, best

    def round(self, arms: Sequence[str]) -> Iterator[Turn[T]]:
        """Every arm twice, there and back."""
        for position, arm in enumerate([*arms, *reversed(arms)]):
            yield self.turn(position, arm)

    def turn(self, position: int, arm: str) -> Turn[T]:
        """One block, measured again while the machine's rate has fallen, up to `MOST_REPEATS`
        times. The attempt at the best rate counts, whatever it measured."""
        attempts: list[Turn[T]] = []
        while True:
            before, found, after = self.rate(), self.measure(arm), self.rate()
            self.best = max(self.best, before, after)
            attempts.append(Turn(position, arm, found, min(before, after), len(attempts)))
            kept = max(attempts, key=lambda one: one.matmul_rate)
            if not has_fallen(kept.matmul_rate, self.best) or len(attempts) > MOST_REPEATS:
                return dataclasses.replace(kept, repeats=len(attempts) - 1)


def measure_in_turns(
    study: Study, folder: Path, final: Sequence[PlannedRun], data: TokenData
) -> str:
    """Measure the speed of a study's arms, if it asks for that; returns why it was not possible,
    empty if it was.

    Args:
        folder: of the study.
        final: its final runs; an arm is measured as its first one was trained.
    """
    if study.speed is None:
        return ""
    protocols = {run.arm: run.resolved for run in reversed(final)}
    arms = {arm.name: protocols[arm.name] for arm in study.arms}
    try:
        measure_rounds(study.speed, folder, arms, data)
    except (UserError, RunError) as error:
        warn(f"The speed could not be measured: {error}")
        return str(error)
    return ""


def measure_rounds(
    plan: SpeedPlan, study: Path, protocols: Mapping[str, ResolvedConfig], data: TokenData
) -> None:
    """Measure the rounds that speed.csv lacks, and write it after each.

    What another machine measured is kept if it is complete; else the rounds start over here.

    Args:
        study: the folder of the study.
        protocols: of each arm, as its runs were trained; the models are thrown away.

    Raises:
        UserError: speed.csv is damaged, or a model does not fit into memory.
        NotFinite: an arm diverges.
    """
    first = next(iter(protocols.values()))
    machine = device_name(first.device), torch.get_num_threads()
    blocks = read_speed(study)
    if not is_of_arms(blocks, protocols):
        say("speed.csv is of other arms or models: it is measured again.")
        blocks = []
    if len(by_round(blocks)) >= plan.rounds:
        return
    if any((block.device_name, block.threads) != machine for block in blocks):
        say("The rounds in speed.csv are of another machine: they are measured again here.")
        blocks = []
    say(f"Measuring the speed of {len(protocols)} arms in turns, in {plan.rounds} rounds ...")
    warn_if_busy()
    alternation = Alternation(
        lambda arm: timed_steps(protocols[arm], data, plan.steps),
        partial(matmul_rate_now, first.device, first.dtype),
        max((block.matmul_flops_per_second for block in blocks), default=0.0),
    )
    measured = by_round(blocks).keys()
    with progress() as show:
        for number in sorted(set(range(plan.rounds)) - measured):
            for turn in alternation.round(list(protocols)):
                protocol, found = protocols[turn.arm], turn.found
                blocks.append(
                    SpeedBlock(
                        number,
                        turn.position,
                        turn.arm,
                        found.seconds,
                        found.steps * protocol.tokens_per_step,
                        found.steps * protocol.flops_per_step,
                        turn.matmul_rate,
                        turn.repeats,
                        *machine,
                    )
                )
                show("speed, blocks", len(blocks), 2 * len(protocols) * plan.rounds)
            write_speed(study, blocks)


def is_of_arms(blocks: Sequence[SpeedBlock], protocols: Mapping[str, ResolvedConfig]) -> bool:
    """Whether blocks are of these arms as they are now, by the FLOPs per token of their models; no
    blocks are of any arms."""
    costs = {arm: one.flops_per_step / one.tokens_per_step for arm, one in protocols.items()}
    return not blocks or (
        {block.arm for block in blocks} == costs.keys()
        and all(is_same_cost(block, costs[block.arm]) for block in blocks)
    )
