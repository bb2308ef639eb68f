"""[speed] of a study file: how the speed of the arms is measured."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from smolctl.studies.study_keys import typed_fields
from smollm2.errors import UserError
from smollm2.runs.speed_table import MOST_ROUNDS


@dataclass(frozen=True)
class SpeedPlan:
    """How the speed of the arms is measured once their runs are finished.

    Args:
        rounds: in each, the arms train in turns, there and back: A B C, C B A. The interval is
            over rounds.
        steps: in a block at the least; a block also lasts at least a second.
    """

    rounds: int = 5
    steps: int = 1


def speed_plan_of(values: Mapping[str, Any]) -> SpeedPlan:
    """The plan of [speed].

    Raises:
        UserError: a value is not a whole number, or out of range.
    """
    plan = SpeedPlan(**typed_fields(SpeedPlan, values, "[speed]"))
    if not 2 <= plan.rounds <= MOST_ROUNDS:
        raise UserError(
            f"rounds of [speed] is 2 to {MOST_ROUNDS:,}, not {plan.rounds}: the interval is over "
            "rounds."
        )
    if not 1 <= plan.steps <= MOST_STEPS:
        raise UserError(f"steps of [speed] is 1 to {MOST_STEPS:,}, not {plan.steps}.")
    return plan


MOST_STEPS = 1_000_000  # of a block
