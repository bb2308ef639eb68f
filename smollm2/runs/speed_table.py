"""speed.csv of a study: how fast its arms train, measured in turns in one process."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from smollm2.errors import UserError
from smollm2.runs.links import require_own
from smollm2.runs.tables import TableFolder

N = TypeVar("N", int, float)

SPEED = "speed"
MOST_ROUNDS = 1000
MOST_FALL = 0.1  # of the matmul rate below the best one seen: something else had the machine
FROM_ZERO = ("round", "position", "repeats")  # the other numbers are positive
REMEDY = "remove it, and `smolctl study` measures again."


@dataclass(frozen=True)
class SpeedBlock:
    """A row of speed.csv: some training steps of one arm.

    Args:
        round: its number, from 0. In a round every arm has two blocks.
        position: the place in the round, from 0.
        seconds: of training; building the model and its first step are not timed.
        tokens, flops: what was trained on, and the training FLOPs that follow from the model.
        matmul_flops_per_second: the machine's rate of multiplying matrices, measured before and
            after the block; the lower of the two.
        repeats: how often the block was measured again, because that rate had fallen.
    """

    round: int
    position: int
    arm: str
    seconds: float
    tokens: int
    flops: float
    matmul_flops_per_second: float
    repeats: int
    device_name: str
    threads: int


LEAST, MOST = 1e-30, 1e30  # of any cell: far beyond any machine, and their ratios are finite


def read_speed(study: Path) -> list[SpeedBlock]:
    """The blocks of a study in its folder `study`, in order; empty without a file.

    Raises:
        UserError: the file cannot be read, has a cell that no measurement writes, is of several
            machines or arms, or has a round in which an arm does not have two blocks.
    """
    table, where = TableFolder(study), f"{study.name}/{SPEED}.csv"
    try:
        rows = table.rows(SPEED)
    except UserError as error:
        raise UserError(f"{str(error).removesuffix('.')}; {REMEDY}") from None
    blocks = [block_of(row, where) for row in rows]
    if len({(block.device_name, block.threads) for block in blocks}) > 1:
        raise UserError(f"{where} was measured on several machines; {REMEDY}")
    arms = sorted({block.arm for block in blocks})
    for number, found in by_round(blocks).items():
        names = sorted(block.arm for block in found)
        places = sorted(block.position for block in found)
        if names != sorted([*arms, *arms]) or places != list(range(len(found))):
            raise UserError(f"{where} does not have round {number} whole; {REMEDY}")
    return sorted(blocks, key=lambda block: (block.round, block.position))


def block_of(row: Mapping[str, str], where: str) -> SpeedBlock:
    """The block of a row of text.

    Raises:
        UserError: it is no block; the message begins with `where`.
    """

    def text(name: str) -> str:
        if not (found := row.get(name)):
            raise UserError(f"{where} has a row without {name}; {REMEDY}")
        return found

    def number(name: str, kind: type[N]) -> N:
        try:
            value = kind(text(name))
            if LEAST < value < MOST or (value == 0 and name in FROM_ZERO):
                return value
        except (ValueError, OverflowError) as error:
            if isinstance(error, UserError):
                raise
        raise UserError(f"{where} has the {name} {text(name)!r:.40}; {REMEDY}")

    return SpeedBlock(
        number("round", int),
        number("position", int),
        text("arm"),
        number("seconds", float),
        number("tokens", int),
        number("flops", float),
        number("matmul_flops_per_second", float),
        number("repeats", int),
        text("device_name"),
        number("threads", int),
    )


def by_round(blocks: Sequence[SpeedBlock]) -> dict[int, list[SpeedBlock]]:
    """The blocks of each round."""
    rounds: dict[int, list[SpeedBlock]] = {}
    for block in blocks:
        rounds.setdefault(block.round, []).append(block)
    return rounds


def has_fallen(rate: float, best: float) -> bool:
    """Whether the machine's matmul rate is more than a tenth below the best one seen."""
    return rate < (1 - MOST_FALL) * best


def is_same_cost(block: SpeedBlock, flops_per_token: float) -> bool:
    """Whether a block is of a model that takes so many training FLOPs per token."""
    return math.isclose(block.flops / block.tokens, flops_per_token, rel_tol=1e-9)


def write_speed(study: Path, blocks: Sequence[SpeedBlock]) -> None:
    """Replace speed.csv in the folder `study`."""
    require_own(study, f"{SPEED}.csv")
    TableFolder(study).replace(SPEED, [asdict(block) for block in blocks])
