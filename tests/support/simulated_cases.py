"""The designs that are simulated, in groups: a row of the table in docs/statistics.md each."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

from support.simulated import document_coverage, false_verdicts, tuned_false_verdicts

SPREADS = ((1, 1), (5, 1), (1, 5))  # of the arms and of the base


@dataclass(frozen=True)
class Rates:
    """Shares over the designs of a group.

    Args:
        studies: simulated of each design.
        false: the largest share of studies with a false verdict; None if not simulated.
        covered: the smallest share of intervals that contain the true difference.
    """

    designs: int
    studies: int
    false: float | None
    covered: float

    @property
    def tolerance(self) -> float:
        """Four standard errors of a share of 5 % in a design."""
        return 4 * math.sqrt(0.05 * 0.95 / self.studies)


def blocked(studies: int) -> Iterator[tuple[float | None, float]]:
    for rho, (ratio, base_ratio), seeds, arms in product(
        (0, 0.5, 0.9), SPREADS, (2, 3, 5, 10), (1, 4)
    ):
        noise: dict[str, Any] = {"correlation": rho, "ratio": ratio, "base_ratio": base_ratio}
        yield false_verdicts(studies, arms=arms, seeds=seeds, blocked=True, **noise)


def incomplete(studies: int) -> Iterator[tuple[float | None, float]]:
    """The base and the arms each lack one or two other seeds."""
    for rho, (ratio, base_ratio), (seeds, drop), arms in product(
        (0, 0.5, 0.9), SPREADS, ((4, 1), (6, 1), (6, 2), (8, 2)), (1, 4)
    ):
        noise: dict[str, Any] = {"correlation": rho, "ratio": ratio, "base_ratio": base_ratio}
        yield false_verdicts(studies, arms=arms, seeds=seeds, drop=drop, blocked=True, **noise)


def independent(studies: int) -> Iterator[tuple[float | None, float]]:
    for (ratio, base_ratio), seeds, arms in product(SPREADS, (2, 3, 5, 10), (1, 4)):
        noise: dict[str, Any] = {"correlation": 0, "ratio": ratio, "base_ratio": base_ratio}
        yield false_verdicts(studies, arms=arms, seeds=seeds, blocked=False, **noise)


def looks(studies: int) -> Iterator[tuple[float | None, float]]:
    for blocked_, arms in product((True, False), (1, 4)):
        noise: dict[str, Any] = {"correlation": 0.5 * blocked_, "looks": (3, 5, 8)}
        yield false_verdicts(studies, arms=arms, seeds=8, blocked=blocked_, **noise)


def heavy_tails(studies: int) -> Iterator[tuple[float | None, float]]:
    for blocked_, (ratio, base_ratio), seeds, arms in product(
        (True, False), SPREADS, (2, 3, 5, 10), (1, 4)
    ):
        noise: dict[str, Any] = {"correlation": 0.5 * blocked_, "tails": "t3"}
        noise |= {"ratio": ratio, "base_ratio": base_ratio}
        yield false_verdicts(studies, arms=arms, seeds=seeds, blocked=blocked_, **noise)


def ten_times(studies: int) -> Iterator[tuple[float | None, float]]:
    for blocked_, ratios, seeds in product((True, False), ((10, 1), (1, 10)), (2, 3, 5, 10)):
        noise: dict[str, Any] = {"correlation": 0.5 * blocked_}
        noise |= dict(zip(("ratio", "base_ratio"), ratios, strict=True))
        yield false_verdicts(studies, arms=4, seeds=seeds, blocked=blocked_, **noise)


def tuning(studies: int) -> Iterator[tuple[float | None, float]]:
    for factor, valley, rise, (rates, seeds), (arms, final) in product(
        (2**0.5, 2),
        ("parabola", "steep", "exponential", "cliff"),
        (0.01, 0.08),
        ((3, 3), (5, 3), (7, 5)),
        ((1, 20), (4, 5)),
    ):
        grid: dict[str, Any] = {"factor": factor, "rise": rise, "rates": rates, "seeds": seeds}
        wrong, _ = tuned_false_verdicts(studies, valley, arms=arms, final_seeds=final, **grid)
        yield wrong, 1 - wrong


def noisy_tuning(studies: int) -> Iterator[tuple[float | None, float]]:
    """Rates above the best one are three times as noisy."""
    for factor, rise, (rates, seeds), final in product(
        (2**0.5, 2), (0.01, 0.03), ((5, 2), (5, 3), (7, 5)), (20, 100)
    ):
        grid: dict[str, Any] = {"factor": factor, "rise": rise, "rates": rates, "seeds": seeds}
        wrong, _ = tuned_false_verdicts(
            studies,
            "parabola",
            arms=4,
            final_seeds=final,
            noise_above=3.0,
            **grid,
        )
        yield wrong, 1 - wrong


# Spreads of seeds, documents and both, and of the logarithm of a document's tokens.
DOCUMENT_NOISE = ((1, 1, 1, 1), (0.2, 1, 0.1, 1), (1, 0.2, 0.5, 0), (0.2, 1, 0.1, 2))


def these_documents(studies: int) -> Iterator[tuple[float | None, float]]:
    for documents, seeds, noise in product((2, 5, 15, 50), (2, 5, 10), DOCUMENT_NOISE):
        yield None, of_documents(studies, documents, seeds, noise)[0]


def like_documents(studies: int) -> Iterator[tuple[float | None, float]]:
    for documents, seeds, noise in product((5, 8, 15, 50), (2, 5, 10), DOCUMENT_NOISE):
        yield None, of_documents(studies, documents, seeds, noise)[1]


def of_documents(
    studies: int, documents: int, seeds: int, noise: tuple[float, ...]
) -> tuple[float, float]:
    names = ("of_seeds", "of_documents", "both", "sizes")
    kinds: dict[str, Any] = dict(zip(names, noise, strict=True))
    return document_coverage(studies, seeds=seeds, documents=documents, **kinds)


GROUPS: dict[str, Callable[[int], Iterator[tuple[float | None, float]]]] = {
    "blocks: correlation 0, 0.5, 0.9; spreads equal or 5 times apart; 2, 3, 5, 10 seeds; "
    "1 and 4 arms": blocked,
    "the same, incomplete: 2 to 4 pairs, and 1 or 2 seeds of each arm alone": incomplete,
    "independent seeds: spreads equal or 5 times apart; 2, 3, 5, 10 seeds; 1 and 4 arms": (
        independent
    ),
    "looks at 3, 5 and 8 seeds; 1 and 4 arms; in blocks or not": looks,
    "heavy tails (Student's t with 3 degrees of freedom), else as above": heavy_tails,
    "spreads 10 times apart; 4 arms": ten_times,
    "tuning: grids of 3 to 7 rates a factor √2 or 2 apart, 3 and 5 seeds; four valleys, three of "
    "them steeper on the right; 1 and 4 arms; 20 and 5 final seeds": tuning,
    "tuning: noise three times as large at high rates; 4 arms; 20 and 100 final seeds": (
        noisy_tuning
    ),
    "interval for these documents: 2, 5, 15, 50 documents; 2, 5, 10 seeds": these_documents,
    "interval for documents like these: 5, 8, 15, 50 documents; 2, 5, 10 seeds": like_documents,
}

SLOWER = {"tuning": 50, "interval": 10}


def rates_of(group: str, studies: int) -> Rates:
    """The worst shares of a group: a fiftieth of `studies` of each design with tuning, which take
    as much longer, and a tenth of those with documents."""
    studies //= next((n for word, n in SLOWER.items() if group.startswith(word)), 1)
    found = list(GROUPS[group](studies))
    false = [one for one, _ in found if one is not None]
    return Rates(
        len(found), studies, max(false, default=None), min(covered for _, covered in found)
    )
