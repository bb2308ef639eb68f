"""How the configurations of a model rank: which one to take, which one another beats, and where the
change of the loss would rank them otherwise than the KL divergence."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

from smolctl.analysis.quantized_arms import (
    BF16,
    KL,
    LOSS_DELTA,
    Configuration,
    Pair,
    configurations,
)
from smollm2.runs.run import Run


@dataclass(frozen=True)
class Ranking:
    """How everything in a run's quantize.csv ranks.

    Args:
        max_kl: nats/token, within which a configuration is recommended.
    """

    run: Run
    max_kl: float

    @cached_property
    def configurations(self) -> dict[str, Configuration]:
        """By name; none if the file cannot be read."""
        return configurations(self.run.name, [self.run], [])

    @cached_property
    def recommended(self) -> Configuration | None:
        return recommended(self.configurations.values(), self.max_kl)

    @cached_property
    def dominated(self) -> dict[str, str]:
        return dominated(self.configurations.values())

    @property
    def closest(self) -> Configuration | None:
        """The configuration with the least KL divergence."""
        measured = [one for one in self.configurations.values() if one.name != BF16]
        measured = [one for one in measured if one.values(KL)]
        return min(measured, key=lambda one: one.mean(KL), default=None)


def recommended(found: Iterable[Configuration], max_kl: float) -> Configuration | None:
    """The smallest file whose mean KL divergence is at most `max_kl`, and of equal ones the one
    with the least; None if there is none."""
    within = [one for one in found if one.name != BF16 and one.mean(KL) <= max_kl]  # no NaN
    return min(within, key=lambda one: (one.mean("disk_bytes"), one.mean(KL)), default=None)


def dominated(found: Iterable[Configuration]) -> dict[str, str]:
    """By the name of each configuration that another beats, with no more bytes on disk and less KL
    divergence: which one, that with the least."""
    by_kl = sorted((one for one in found if one.values(KL)), key=lambda one: one.mean(KL))
    beaten = {}
    for i, one in enumerate(by_kl):
        smaller = [
            other.name
            for other in by_kl[:i]
            if other.mean("disk_bytes") <= one.mean("disk_bytes")
            if other.mean(KL) < one.mean(KL)
        ]
        if smaller:
            beaten[one.name] = smaller[0]
    return beaten


def ranked_otherwise(found: Iterable[Configuration]) -> list[tuple[str, str]]:
    """Pairs of configurations, the one with less KL divergence first, of which the change of the
    loss prefers the second; those whose KL divergences are furthest apart first."""
    measured = [one for one in found if one.name != BF16 and one.has_kl]
    by_kl = sorted(measured, key=lambda one: one.mean(KL))
    pairs = [
        (less, more)
        for less, more in combinations(by_kl, 2)
        if less.mean(KL) < more.mean(KL) and less.mean(LOSS_DELTA) > more.mean(LOSS_DELTA)
    ]
    pairs.sort(key=lambda pair: pair[0].mean(KL) / pair[1].mean(KL))
    return [(less.name, more.name) for less, more in pairs]


def arms_ranked_otherwise(pairs: Iterable[Pair]) -> list[Pair]:
    """Those of which the change of the loss prefers the other arm than the KL divergence."""
    return [
        pair
        for pair in pairs
        if pair.is_by_kl and pair.difference and pair.difference.mean * pair.loss_difference < 0
    ]
