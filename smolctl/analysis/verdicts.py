"""The verdicts of a study: which arms differ from the first, and what is missing to tell.

One rule holds for every family of verdicts. With m arms, k looks and alpha = 0.05 every interval
has the confidence 1 - alpha / (m k): Bonferroni, valid for any dependence of the arms and looks. So
the chance of any false verdict in a family is at most alpha.
"""

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar

from smolctl.analysis.blocks import by_seed, gain_of_pairing, over_seeds, within_blocks
from smolctl.analysis.power import detectable_by_t, minimum_detectable_effect
from smolctl.analysis.stats import SMALLEST_SPREAD, Estimate, sample, welch
from smolctl.analysis.study_plan import ALPHA

K = TypeVar("K", bound=Hashable)
FEWEST_DOCUMENTS = 5


class Verdict(StrEnum):
    """The verdict of a study on an arm against the first one."""

    BETTER = "better"
    WORSE = "worse"
    EQUIVALENT = "equivalent"  # the difference is within the study's margin
    INCONCLUSIVE = "inconclusive"
    WITHDRAWN = "withdrawn"  # the study is superseded


class Missing(StrEnum):
    """What an inconclusive verdict lacks."""

    SEEDS = "seeds"  # there are too few, or some diverged
    TUNING = "tuning"  # a better learning rate could turn the verdict
    DOCUMENTS = "documents"  # there are too few in the test set
    REGIME = "regime"  # a trigram model is as good, or its loss is unknown
    QUESTIONS = "questions"  # of a task that two checkpoints answered, there are too few


@dataclass(frozen=True)
class ArmResult:
    """What an arm brings to its verdict.

    Args:
        losses: final test loss by seed, in nats/token, of the runs that finished.
        model: equal for arms of one model; a study has one recipe but for the rates.
        rate: the learning rates of the recipe.
        diverged: seeds whose loss did not stay finite. They count as finished.
        planned: the seeds that the study's ledger planned before the first result; None: no plan.
        departs: whether the runs depart from that plan in another way than by their seeds.
        lost: whether results that the ledger has are missing here: what is left is no sample.
        tuning_gap: upper bound in nats/token, infinite without one; None if the arm was not tuned.
        documents: of the test set, as many as they would be of one length.
        trigram: loss of a trigram model counted on as many tokens as a run has seen, on the same
            test text; None if unknown. Two arms of one model need not be below it.
    """

    losses: Mapping[int, float]
    model: Hashable
    rate: tuple[float, ...]
    diverged: frozenset[int] = frozenset()
    planned: frozenset[int] | None = None
    departs: bool = False
    lost: bool = False
    tuning_gap: float | None = None
    documents: float = 0
    trigram: float | None = None

    @property
    def finished(self) -> frozenset[int]:
        return frozenset(self.losses) | self.diverged

    @property
    def is_exploratory(self) -> bool:
        return self.planned is None or self.departs or not self.finished <= self.planned

    @property
    def mean(self) -> float:
        return float(sample(list(self.losses.values())).mean)


@dataclass(frozen=True)
class Design:
    """How a study's arms are compared, fixed before the first result.

    Args:
        blocked: whether arms are compared within seeds.
        margin: a difference within it does not matter, in nats/token; None: no arm is equivalent.
        looks: numbers of seeds of an arm at which the study is judged, the planned number last;
            empty: that one only.
        comparisons: with the base, in the whole study; at least those that are judged now.
        alpha: the chance of any false verdict.
    """

    blocked: bool
    margin: float | None = None
    looks: tuple[int, ...] = ()
    alpha: float = ALPHA
    comparisons: int = 0


@dataclass(frozen=True)
class Difference:
    """An arm minus the base, in the unit of the runs' number.

    Attributes:
        mean: at the rates that the runs had.
        interval: over seeds, at `confidence`; None if an arm has one run or there is no spread.
        confidence: 1 - alpha / (arms * looks), the same for all arms of a family.
        p: two-sided, of no difference, before correction; None without an interval.
        minimum_detectable_effect: the true difference, at the rates the runs had, whose interval
            excludes 0 in 80 % of studies. Rough with few runs, as it uses the estimated spread.
        gaps: what better tuning of the base and of the arm could still gain, in nats/token; see
            `gaps`. None for a difference at the rates that the runs had.
        paired: whether the arms are compared within seeds.
        gain_of_pairing: how many times the seeds it is worth; None if unknown or not paired.
        missing: what an inconclusive verdict lacks; empty for any other verdict.
        exploratory: whether there is no plan of the seeds from before the first result, or the
            runs depart from it.
        standard_error: of `mean`, with `degrees_of_freedom` for Student's t; None without an
            interval.
    """

    mean: float
    interval: tuple[float, float] | None
    confidence: float
    p: float | None
    minimum_detectable_effect: float | None
    verdict: Verdict
    gaps: tuple[float, float] | None = None
    paired: bool = False
    gain_of_pairing: float | None = None
    missing: tuple[Missing, ...] = ()
    exploratory: bool = False
    standard_error: float | None = None
    degrees_of_freedom: float | None = None

    @property
    def widened(self) -> tuple[float, float] | None:
        """`interval` with the gaps: the difference at each arm's own best rate. It makes the
        verdict. None if it has no bound."""
        if self.interval is None or self.gaps is None or math.inf in self.gaps:
            return None
        return widen(self.interval, self.gaps)


def withdrawn_difference(found: Difference) -> Difference:
    """What is left of the difference of a superseded study: its mean. An interval would claim a
    precision that is refuted."""
    return without_interval(
        found.mean, found.confidence, verdict=Verdict.WITHDRAWN, paired=found.paired
    )


def without_interval(
    mean: float, confidence: float, *, verdict: Verdict = Verdict.INCONCLUSIVE, **fields: Any
) -> Difference:
    """A difference of which only the mean is known."""
    return Difference(
        mean=mean,
        interval=None,
        confidence=confidence,
        p=None,
        minimum_detectable_effect=None,
        verdict=verdict,
        **fields,
    )


def differences(base: Sequence[float], arms: Mapping[K, Sequence[float]]) -> dict[K, Difference]:
    """Every arm against the base: see `differences_of_pairs`."""
    return differences_of_pairs({arm: (base, values) for arm, values in arms.items()})


def differences_of_pairs(
    pairs: Mapping[K, tuple[Sequence[float], Sequence[float]]],
    margins: Mapping[K, float] | None = None,
    comparisons: int = 0,
    looks: int = 1,
) -> dict[K, Difference]:
    """The second of each pair against its first, one number per run, with independent seeds; the
    smaller number is better. See `degrees_of_freedom` for the test. Every interval
    has the confidence 1 - 0.05 / (`comparisons` · `looks`), with at least one comparison a pair. A
    pair is equivalent within its margin, else better or worse where the interval excludes 0; with
    one run it is inconclusive. Pairs may be dependent.

    Raises:
        ValueError: an arm has no run, or one that is not finite.
    """
    level = ALPHA / max(1, comparisons, len(pairs)) / looks
    found: dict[K, Difference] = {}
    for name, values in pairs.items():
        first, second = map(sample, values)
        estimate = welch(first, second)
        if estimate is None:
            found[name] = without_interval(float(second.mean - first.mean), 1 - level)
            continue
        interval = bounds(estimate, level)
        found[name] = Difference(
            mean=float(estimate.mean),
            interval=interval,
            confidence=1 - level,
            p=float(estimate.p),
            minimum_detectable_effect=minimum_detectable_effect(first, second, level),
            verdict=verdict_on(interval, (margins or {}).get(name)),
            standard_error=float(estimate.error),
            degrees_of_freedom=float(estimate.df),
        )
    return found


def difference_over_seeds(
    base: Mapping[int, float], arm: Mapping[int, float], *, paired: bool, confidence: float
) -> Difference:
    """Arm minus base of any number of the runs, by block, at the rates that they had. Its interval
    is no verdict."""
    first, second = (sample(list(one.values())) for one in (base, arm))
    estimate = within_blocks(*by_seed(base, arm)) if paired else welch(first, second)
    if estimate is None:
        return without_interval(float(second.mean - first.mean), confidence, paired=paired)
    return Difference(
        mean=float(estimate.mean),
        interval=bounds(estimate, 1 - confidence),
        confidence=confidence,
        p=float(estimate.p),
        minimum_detectable_effect=None,
        verdict=Verdict.INCONCLUSIVE,
        paired=paired,
        standard_error=float(estimate.error),
        degrees_of_freedom=float(estimate.df),
    )


def judge(arms: Mapping[K, ArmResult], design: Design) -> dict[K, Difference]:
    """The verdict on every arm against the first one.

    The estimand is the difference of the expected test losses, each arm at its own best learning
    rate. The interval over seeds is widened by the upper bounds of the two tuning gaps, unless both
    arms are one model at one rate. An arm is equivalent if it lies within the margin, else better
    or worse if it excludes zero. Otherwise, and where seeds, tuning, documents or the regime allow
    no verdict, the arm is inconclusive, and `missing` says why.

    Raises:
        ValueError: an arm has no finished run, or a loss that is not finite.
    """
    base, *others = arms.values()
    level = design.alpha / max(1, design.comparisons, len(others)) / max(1, len(design.looks))
    found = [judged(base, arm, design, level) for arm in others]
    return dict(zip(list(arms)[1:], found, strict=True))


def judged(base: ArmResult, arm: ArmResult, design: Design, level: float) -> Difference:
    """See `judge`."""
    both, losses = (base, arm), by_seed(base.losses, arm.losses)
    paired = design.blocked and len(base.losses.keys() & arm.losses.keys()) > 1
    first, second = (
        sample(list(one.losses.values()), least_spread=SMALLEST_SPREAD) for one in both
    )
    estimate = over_seeds(*losses, blocked=paired)
    exploratory = any(one.is_exploratory for one in both)
    missing = missing_conditions(base, arm, design.looks)
    open_to_tuning = gaps(base, arm)
    if estimate is None:
        return without_interval(
            float(second.mean - first.mean),
            1 - level,
            gaps=open_to_tuning,
            missing=missing_in_order([*missing, Missing.SEEDS]),
            exploratory=exploratory,
        )
    interval = bounds(estimate, level)
    mean = float(estimate.mean)
    verdict = verdict_on(widen(interval, open_to_tuning), design.margin)
    if verdict is Verdict.INCONCLUSIVE:
        missing += missing_precision(mean, interval, open_to_tuning, design.margin)
    elif not stands_with_diverged(verdict, base, arm):
        missing.append(Missing.SEEDS)
    return Difference(
        mean=mean,
        interval=interval,
        confidence=1 - level,
        p=float(estimate.p),
        minimum_detectable_effect=(
            detectable_by_t(float(estimate.error), float(estimate.df), level)
            if paired
            else minimum_detectable_effect(first, second, level)
        ),
        verdict=Verdict.INCONCLUSIVE if missing else verdict,
        gaps=open_to_tuning,
        paired=paired,
        gain_of_pairing=gain_of_pairing(*losses) if paired else None,
        missing=missing_in_order(missing),
        exploratory=exploratory,
        standard_error=float(estimate.error),
        degrees_of_freedom=float(estimate.df),
    )


def missing_conditions(base: ArmResult, arm: ArmResult, looks: Sequence[int]) -> list[Missing]:
    """What a verdict takes, whatever the interval, and lacks."""
    both = (base, arm)
    found = []
    counts = [
        (len(one.finished & one.planned), len(one.planned))
        for one in both
        if one.planned is not None
    ]
    if not is_at_a_look(counts, looks) or any(one.lost for one in both):
        found.append(Missing.SEEDS)
    if is_mistuned(base, arm):
        found.append(Missing.TUNING)
    if min(one.documents for one in both) < FEWEST_DOCUMENTS:
        found.append(Missing.DOCUMENTS)
    is_learned = all(one.trigram is not None and one.mean < one.trigram for one in both)
    if base.model != arm.model and not is_learned:
        found.append(Missing.REGIME)
    return found


def missing_precision(
    mean: float,
    interval: tuple[float, float],
    gaps: tuple[float, float],
    margin: float | None,
) -> list[Missing]:
    """What keeps the widened interval from a verdict: seeds where perfect tuning would not be
    enough, tuning where any number of seeds would not."""
    found = []
    if verdict_on(interval, margin) is Verdict.INCONCLUSIVE:
        found.append(Missing.SEEDS)
    with_any_seeds = verdict_on(widen((mean, mean), gaps), margin)
    if not found or (any(gaps) and with_any_seeds is Verdict.INCONCLUSIVE):
        found.append(Missing.TUNING)
    return found


def is_at_a_look(counts: Sequence[tuple[int, int]], looks: Sequence[int]) -> bool:
    """Whether arms have as many planned seeds as a look asks for, an arm with fewer planned ones
    all of them. Without looks that is all planned seeds; without a plan there is nothing to wait
    for.

    Args:
        counts: of each arm with a plan, how many of its planned seeds are finished, and how many
            there are.
    """

    def is_at(look: float) -> bool:
        return all(done == min(look, planned) for done, planned in counts)

    return any(map(is_at, looks)) if looks else is_at(math.inf)


def is_mistuned(base: ArmResult, arm: ArmResult) -> bool:
    """Whether one model has two rates: its difference at the best rate is zero."""
    return base.model == arm.model and base.rate != arm.rate


def gaps(base: ArmResult, arm: ArmResult) -> tuple[float, float]:
    """What tuning could still gain in the base and in the arm: infinite where that has no known
    bound, nothing where both are one model at one rate."""
    if base.model == arm.model and base.rate == arm.rate:
        return 0.0, 0.0
    first, second = (math.inf if one.tuning_gap is None else one.tuning_gap for one in (base, arm))
    return first, second


def stands_with_diverged(verdict: Verdict, base: ArmResult, arm: ArmResult) -> bool:
    """Whether a verdict on the finished runs stands beside those that diverged. An arm with one of
    these is at most worse, than a base without one."""
    if arm.diverged:
        return verdict is Verdict.WORSE and not base.diverged
    return verdict is Verdict.BETTER or not base.diverged


def bounds(estimate: Estimate, level: float) -> tuple[float, float]:
    low, high = map(float, estimate.interval(1 - level))
    return low, high


def widen(interval: tuple[float, float], gaps: tuple[float, float]) -> tuple[float, float]:
    """The interval at the best rates: the base could gain the first gap, the arm the second."""
    return interval[0] - gaps[1], interval[1] + gaps[0]


def verdict_on(interval: tuple[float, float], margin: float | None) -> Verdict:
    """What an interval of the difference of losses says."""
    low, high = interval
    if margin is not None and -margin < low and high < margin:
        return Verdict.EQUIVALENT
    if low > 0:
        return Verdict.WORSE
    return Verdict.BETTER if high < 0 else Verdict.INCONCLUSIVE


def missing_in_order(missing: Iterable[Missing]) -> tuple[Missing, ...]:
    """Each once, in the order of the class."""
    return tuple(one for one in Missing if one in missing)
