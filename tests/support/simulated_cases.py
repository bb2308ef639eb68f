"""The designs that are simulated, in groups: a row of the table in docs/statistics.md each."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

from support.simulated import SPREAD, Shares, false_equivalence, false_verdicts, lost_seeds
from support.simulated_documents import document_coverage
from support.simulated_growth import grown_false_verdicts
from support.simulated_ladders import LARGEST, TRUTHS, false_trends
from support.simulated_transfer import false_tuned_trends
from support.simulated_tuning import VALLEYS, tuned_false_verdicts

# Of so many studies; the shares for one or several designs that share random numbers.
Simulation = Callable[[int], list[tuple[float | None, float]] | Shares]

SPREADS = tuple({"ratio": a, "base_ratio": b} for a, b in ((1, 1), (5, 1), (1, 5)))
CORRELATIONS = (0, 0.5, 0.9)
BLOCKED = ({"blocked": True, "correlation": 0.5}, {"blocked": False, "correlation": 0})
SEEDS = (2, 3, 5, 10)


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


def blocked() -> Iterator[Simulation]:
    for rho, spreads, seeds in product(CORRELATIONS, SPREADS, SEEDS):
        yield partial(false_verdicts, correlation=rho, seeds=seeds, blocked=True, **spreads)


def incomplete() -> Iterator[Simulation]:
    """The base and the arms each lack one or two other seeds."""
    for rho, spreads, (seeds, drop) in product(
        CORRELATIONS, SPREADS, ((4, 1), (6, 1), (6, 2), (8, 2))
    ):
        design: dict[str, Any] = {"seeds": seeds, "drop": drop, "correlation": rho}
        yield partial(false_verdicts, blocked=True, **design, **spreads)


def independent() -> Iterator[Simulation]:
    for spreads, seeds in product(SPREADS, SEEDS):
        yield partial(false_verdicts, correlation=0, seeds=seeds, blocked=False, **spreads)


def looks() -> Iterator[Simulation]:
    for spreads, rho in product(SPREADS, (*CORRELATIONS, None)):
        design: dict[str, Any] = {"blocked": rho is not None, "correlation": rho or 0}
        yield partial(false_verdicts, seeds=8, looks=(3, 5, 8), **design, **spreads)


def heavy_tails() -> Iterator[Simulation]:
    for design, spreads, seeds in product(BLOCKED, SPREADS, SEEDS):
        yield partial(false_verdicts, tails="t3", seeds=seeds, **design, **spreads)


def ten_times() -> Iterator[Simulation]:
    for design, spreads, seeds in product(BLOCKED, ((10, 1), (1, 10)), SEEDS):
        ratios = dict(zip(("ratio", "base_ratio"), spreads, strict=True))
        yield partial(false_verdicts, seeds=seeds, **design, **ratios)


def equivalence() -> Iterator[Simulation]:
    for design, spreads, seeds, margin in product(BLOCKED, SPREADS, SEEDS, (1, 4, 16)):
        sizes: dict[str, Any] = {"seeds": seeds, "margin": margin * SPREAD}
        yield partial(false_equivalence, **sizes, **design, **spreads)


def divergence() -> Iterator[Simulation]:
    for design, both, rate, steepness, seeds in product(
        BLOCKED, (False, True), (0.1, 0.3), (0, 1, 5), (3, 5, 10)
    ):
        kinds: dict[str, Any] = {"both": both, "rate": rate, "steepness": steepness}
        yield partial(lost_seeds, seeds=seeds, **kinds, **design)


def tuning() -> Iterator[Simulation]:
    for factor, valley, rise, (rates, seeds), final in product(
        (2**0.5, 2), VALLEYS, (0.01, 0.08), ((3, 3), (5, 3), (7, 5)), (20, 5)
    ):
        grid: dict[str, Any] = {"factor": factor, "rise": rise, "rates": rates, "seeds": seeds}
        yield partial(tuned_false_verdicts, valley=valley, final_seeds=final, **grid)


def noisy_tuning() -> Iterator[Simulation]:
    """Rates above the best one are three times as noisy."""
    for factor, rise, (rates, seeds), final in product(
        (2**0.5, 2), (0.01, 0.03), ((5, 2), (5, 3), (7, 5)), (20, 100)
    ):
        grid: dict[str, Any] = {"factor": factor, "rise": rise, "rates": rates, "seeds": seeds}
        grid |= {"valley": "parabola", "noise_above": 3, "families": (4,)}
        yield partial(tuned_false_verdicts, final_seeds=final, **grid)


def growing() -> Iterator[Simulation]:
    """Grids that grow at most two octaves beyond their first edges, at one octave."""
    for rise, octaves, arms in product((0.002, 0.005, 0.01, 0.03), (4, 3, 2, 1), (1, 4)):
        grid: dict[str, Any] = {"rise": rise, "octaves": octaves, "arms": arms}
        yield partial(grown_false_verdicts, final_seeds=50, **grid)


def ladders() -> Iterator[Simulation]:
    """Even and uneven numbers of seeds and spreads of two to six sizes, for a size among them and
    one beyond."""
    sizes = (
        ((10, 6, 3), (1, 1, 1)),
        ((10, 6, 3), (0.3, 1, 3)),
        ((10, 6, 3), (3, 1, 0.3)),
        ((3, 3, 3), (1, 1, 0.2)),
        ((5, 5), (1, 1)),
        ((3,) * 6, (1,) * 6),
    )
    for truth, (seeds, spreads), at, arms in product(TRUTHS, sizes, (2e6, LARGEST), (1, 4)):
        rungs: dict[str, Any] = {"seeds": seeds, "spreads": spreads, "at": at, "arms": arms}
        yield partial(false_trends, truth=truth, **rungs)


def tuned_ladders() -> Iterator[Simulation]:
    """Rates transferred, and checked at the third of four sizes, for a size beyond them all, or at
    the largest of three, also in valleys that are steeper above the best rate; or tuned at each of
    three. The best rates of the arms, or all, drift away from the rule."""
    kinds: tuple[dict[str, Any], ...] = (
        {"check": 2, "sizes": 4, "at": LARGEST, "valley": "parabola"},
        {"check": 2, "sizes": 3, "at": 2e6, "valley": "exponential"},
        {"check": 2, "sizes": 3, "at": 2e6, "valley": "parabola"},
        {"check": None, "sizes": 3, "at": 2e6, "valley": "parabola"},
    )
    noise: tuple[dict[str, Any], ...] = (
        {"rise": 0.08, "final_seeds": 20},
        {"rise": 0.3, "final_seeds": 6},
    )
    truths, drifts = ("none", "gone at 2 M"), ((0, 0.5), (-0.5, 0.25))
    for kind, truth, both, sizes in product(kinds, truths, drifts, noise):
        yield partial(false_tuned_trends, truth=truth, drifts=both, **kind, **sizes)


TAILS = ("gaussian", "t3")
# Spreads of seeds, documents and both, and of the logarithm of a document's tokens.
DOCUMENT_NOISE = ((1, 1, 1, 1), (0.2, 1, 0.1, 1), (1, 0.2, 0.5, 0), (0.2, 1, 0.1, 2))


def these_documents() -> Iterator[Simulation]:
    for documents, seeds, noise, tails in product(
        (2, 5, 15, 50), (2, 5, 10), DOCUMENT_NOISE, TAILS
    ):
        yield partial(of_documents, 0, documents, seeds, noise, tails)


def like_documents() -> Iterator[Simulation]:
    for documents, seeds, noise, tails in product(
        (5, 8, 15, 50), (2, 5, 10), DOCUMENT_NOISE, TAILS
    ):
        yield partial(of_documents, 1, documents, seeds, noise, tails)


def of_documents(
    which: int, documents: int, seeds: int, noise: tuple[float, ...], tails: str, studies: int
) -> list[tuple[float | None, float]]:
    names = ("of_seeds", "of_documents", "both", "sizes")
    kinds: dict[str, Any] = dict(zip(names, noise, strict=True))
    found = document_coverage(studies, seeds=seeds, documents=documents, tails=tails, **kinds)
    return [(None, found[which])]


GROUPS: dict[str, Callable[[], Iterator[Simulation]]] = {
    "blocks: correlation 0, 0.5, 0.9; spreads equal or 5 times apart; 2, 3, 5, 10 seeds": blocked,
    "the same, incomplete: 2 to 4 pairs, and 1 or 2 seeds of each arm alone": incomplete,
    "independent seeds: spreads equal or 5 times apart; 2, 3, 5, 10 seeds": independent,
    "looks at 3, 5 and 8 seeds; correlations and spreads as above; in blocks or not": looks,
    "heavy tails (Student's t with 3 degrees of freedom), else as above": heavy_tails,
    "spreads 10 times apart": ten_times,
    "equivalence: the true difference is the margin, 1, 4 or 16 times the spread of runs; spreads "
    "and seeds as above": equivalence,
    "diverged seeds: 10 or 30 % of the runs of the arms, or of arms and base, at random or those "
    "with the highest losses; 3, 5, 10 seeds": divergence,
    "tuning: grids of 3 to 7 rates a factor √2 or 2 apart, 3 and 5 seeds; four valleys, three of "
    "them steeper on the right; 20 and 5 final seeds": tuning,
    "tuning: noise three times as large at high rates; 4 arms; 20 and 100 final "
    "seeds": noisy_tuning,
    "tuning: grids of 5 rates and 3 seeds that grow; the best rates of the arms 1 to 4 octaves "
    "above that of the base; 50 final seeds; 1 and 4 arms": growing,
    "ladders: no difference, a constant one, one that is gone at 2 M; 2, 3 and 6 sizes, 3 to 10 "
    "seeds, spreads up to 10 times apart; 1 and 4 arms": ladders,
    "ladders: no difference, or one that is gone at 2 M; grids of 7 rates and 3 seeds at all sizes,"
    " or rates that are transferred and drift half an octave; two valleys": tuned_ladders,
    "interval for these documents: 2, 5, 15, 50 documents; 2, 5, 10 seeds": these_documents,
    "interval for documents like these: 5, 8, 15, 50 documents; 2, 5, 10 seeds": like_documents,
}


def rates_of(group: str, studies: int, every: int = 1) -> Rates:
    """The worst shares of a group; of every so many of its simulations."""
    simulations = list(GROUPS[group]())[::every]
    found = [pair for simulate in simulations for pair in simulate(studies)]
    false = [one for one, _ in found if one is not None]
    covered = min(covered for _, covered in found)
    return Rates(len(found), studies, max(false, default=None), covered)
