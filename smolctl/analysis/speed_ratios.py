"""How fast arms train beside the first one, and why: fewer FLOPs per token, more FLOPs per second.

    tokens per second = FLOPs per second / FLOPs per token

FLOPs per token follow from the models and are exact; FLOPs per second are measured, and their
interval is that of the tokens per second.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from smolctl.analysis.arms import Arm
from smolctl.analysis.run_metrics import TOKENS_PER_SECOND
from smolctl.analysis.stats import Interval, critical_t, ratio, sample
from smolctl.analysis.study_plan import ALPHA
from smollm2.errors import UserError
from smollm2.runs.speed_table import (
    REMEDY,
    SPEED,
    SpeedBlock,
    by_round,
    has_fallen,
    is_same_cost,
    read_speed,
)


@dataclass(frozen=True)
class SpeedRatio:
    """The speed of an arm as a multiple of the first one's.

    Attributes:
        tokens: per second, with its interval at `confidence`.
        flops: per second, likewise.
        flops_per_token: exact; `tokens` is `flops` divided by it.
    """

    tokens: Interval
    flops: Interval
    flops_per_token: float
    confidence: float


@dataclass(frozen=True)
class Speeds:
    """How fast the arms of a study train on one machine.

    Attributes:
        is_alternated: measured in turns within one process; otherwise each run has its own speed.
        tokens_per_second: of each arm, a number for each round or run.
        beside_first: the same as multiples of the first arm's: in that round, or of the geometric
            mean of its runs.
        ratios: of every arm but the first.
        blocks, repeats, slowed: how many blocks there are, how many more were measured and
            discarded, and how many stayed although the machine was slower in them.
    """

    is_alternated: bool
    device_name: str
    threads: int
    tokens_per_second: dict[str, list[float]]
    beside_first: dict[str, list[float]]
    ratios: dict[str, SpeedRatio]
    blocks: int = 0
    repeats: int = 0
    slowed: int = 0

    @property
    def rounds(self) -> int:
        """How many rounds, or runs of the first arm, there are."""
        return len(next(iter(self.tokens_per_second.values())))


def measured_speeds(arms: Sequence[Arm]) -> Speeds | None:
    """The speeds in the study's speed.csv; None if it has none, or not of every arm.

    Raises:
        UserError: the file is damaged, or of other models than the runs.
    """
    runs = [finished.run for arm in arms for finished in arm.runs]
    names = {arm.name: arm.runs[0].run.arm for arm in arms}
    is_one_to_one = (
        len({*names.values()}) == len(names) == len({(r.study_path, r.arm) for r in runs})
    )
    if len(arms) < 2 or not is_one_to_one:
        return None
    study = runs[0].study_path
    blocks = read_speed(study)
    if not {*names.values()} <= {block.arm for block in blocks}:
        return None
    costs = {arm.runs[0].run.arm: arm.flops_per_token for arm in arms}
    for block in blocks:
        if block.arm in costs and not is_same_cost(block, costs[block.arm]):
            raise UserError(
                f"{study.name}/{SPEED}.csv was measured with another model than the runs of "
                f"{block.arm!r} have; {REMEDY}"
            )
    return alternated_speeds(blocks, names)


def alternated_speeds(blocks: Sequence[SpeedBlock], names: Mapping[str, str]) -> Speeds:
    """Speeds from blocks that were measured in turns: the logarithms of the ratios to the first
    arm, a number a round, with Student's t over rounds.

    The difference of two arms within a round is free of a drift that is linear within it, and
    rounds share no block, so their differences are independent up to the drift of the machine. All
    intervals have the confidence 1 - 0.05 / m for m arms beside the first (Bonferroni), and contain
    all true ratios with a probability of at least 95 %.

    Args:
        blocks: of one machine, each arm twice in every round.
        names: the arms, the first one first, each with its name in `blocks`.
    """
    logs: dict[str, list[float]] = {arm: [] for arm in names}
    for found in by_round(blocks).values():
        for arm, name in names.items():
            own = [block for block in found if block.arm == name]
            logs[arm].append(fmean(math.log(block.tokens / block.seconds) for block in own))
    costs = {block.arm: block.flops / block.tokens for block in blocks}
    base, *others = names
    confidence = 1 - ALPHA / len(others)
    beside = {
        arm: [own - first for own, first in zip(logs[arm], logs[base], strict=True)]
        for arm in names
    }
    ratios = {
        arm: split(
            times_of(beside[arm], confidence), costs[names[arm]] / costs[names[base]], confidence
        )
        for arm in others
    }
    best = max(block.matmul_flops_per_second for block in blocks)
    return Speeds(
        True,
        blocks[0].device_name,
        blocks[0].threads,
        {arm: list(map(math.exp, values)) for arm, values in logs.items()},
        {arm: list(map(math.exp, values)) for arm, values in beside.items()},
        ratios,
        len(blocks),
        sum(block.repeats for block in blocks),
        sum(has_fallen(block.matmul_flops_per_second, best) for block in blocks),
    )


def own_speeds(arms: Sequence[Arm]) -> Speeds | None:
    """Speeds from the runs' own clocks, which compare arms minutes to hours apart; None if a run is
    too short to have one, or there is one arm. Each interval is at 95 % by itself."""
    values = {arm.name: arm.values(TOKENS_PER_SECOND) for arm in arms}
    if len(arms) < 2 or not all(math.isfinite(one) for found in values.values() for one in found):
        return None
    base, *others = arms
    centre = math.exp(fmean(map(math.log, values[base.name])))
    device, threads = base.runs[0].machine
    return Speeds(
        False,
        device,
        threads,
        values,
        {arm: [one / centre for one in found] for arm, found in values.items()},
        {
            arm.name: split(
                ratio(values[base.name], values[arm.name]),
                arm.flops_per_token / base.flops_per_token,
                1 - ALPHA,
            )
            for arm in others
        },
    )


def times_of(logs: Sequence[float], confidence: float) -> Interval:
    """The ratio whose logarithm is the mean of `logs`, with Student's t interval; none for one
    number or equal ones."""
    found = sample(logs)
    if not found.variance > 0:  # nor is NaN
        return Interval(math.exp(found.mean), None)
    error = math.sqrt(found.variance / found.runs)
    half = error * critical_t((1 - confidence) / 2, found.runs - 1)
    return Interval(
        math.exp(found.mean), (math.exp(found.mean - half), math.exp(found.mean + half))
    )


def split(tokens: Interval, flops_per_token: float, confidence: float) -> SpeedRatio:
    """The ratio of FLOPs per second that a ratio of tokens per second is."""
    bounds = tokens.interval
    flops = Interval(
        tokens.mean * flops_per_token,
        None if bounds is None else (bounds[0] * flops_per_token, bounds[1] * flops_per_token),
    )
    return SpeedRatio(tokens, flops, flops_per_token, confidence)
