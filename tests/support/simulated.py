"""Studies by the thousand, judged by the functions that judge one: what share is wrong?

Every simulation returns, for each number of arms beside the base, the share of studies with a false
verdict and the share of intervals that cover. `tests/analysis/test_error_rates.py` asserts them and
`benchmarks/simulations.py` writes them into docs/statistics.md.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import ndtr, ndtri

from smolctl.analysis.blocks import over_seeds
from smolctl.analysis.stats import Estimate

SPREAD = 0.01  # of runs, in nats/token
FAMILIES = (1, 2, 3, 4)  # arms beside the base
Shares = list[tuple[float, float]]  # of studies with a false verdict, and of intervals that cover


def standard(random: np.random.Generator, shape: tuple[int, ...], tails: str = "gaussian") -> Any:
    """Noise of variance 1."""
    if tails == "gaussian":
        return random.normal(size=shape)
    assert tails == "t3"
    return random.standard_t(3, size=shape) / math.sqrt(3)


def paired_spread(spread: float, correlation: float) -> float:
    """The standard deviation of differences within seeds of two arms with this spread."""
    return spread * math.sqrt(2 * (1 - correlation))


def losses(
    random: np.random.Generator,
    studies: int,
    *,
    arms: int,
    seeds: int,
    correlation: float,
    ratio: float = 1,
    base_ratio: float = 1,
    tails: str = "gaussian",
) -> tuple[Any, Any]:
    """Base (studies, seeds) and arms (arms, studies, seeds) whose expected loss is 0; a seed is a
    block. The spread of an arm is `ratio` times SPREAD, that of the base `base_ratio` times."""
    block = math.sqrt(correlation) * standard(random, (studies, seeds), tails)
    own = math.sqrt(1 - correlation) * standard(random, (1 + arms, studies, seeds), tails)
    base, *others = SPREAD * (block + own)
    return base_ratio * base, ratio * np.array(others)


def compare(base: Any, arm: Any, blocked: bool) -> Estimate:
    """The comparison of `judge`, for many studies."""
    found = over_seeds(base, arm, blocked=blocked)
    assert found is not None
    return found


def shares(wrong: Any, covered: Any) -> tuple[float, float]:
    """Of flags (..., arms, studies): of studies with any false verdict, and of intervals."""
    return float(wrong.reshape(-1, wrong.shape[-1]).any(axis=0).mean()), float(covered.mean())


def equal_arms(
    studies: int,
    *,
    arms: int,
    seeds: int,
    blocked: bool,
    looks: Sequence[int] = (),
    drop: int = 0,
    state: int = 0,
    **noise: Any,
) -> tuple[Any, Any, Any]:
    """Studies of arms that equal the base: its losses, theirs, and the p of every comparison,
    (looks, arms, studies). An interval of confidence 1 - level excludes 0 where p < level.

    Args:
        drop: seeds that each arm lacks, others in the base and in the arms.
    """
    random = np.random.default_rng(state)
    base, others = losses(random, studies, arms=arms, seeds=seeds, **noise)
    if drop:
        base[:, -drop:] = np.nan
        others[:, :, :drop] = np.nan
    looks = looks or (seeds,)
    p = [compare(base[:, :look], others[..., :look], blocked).p for look in looks]
    return base, others, np.array(p)


def false_verdicts(studies: int, *, families: Sequence[int] = FAMILIES, **design: Any) -> Shares:
    """Arms that equal the base: studies with any verdict at any look, and intervals of the last
    look."""
    _, _, p = equal_arms(studies, arms=max(families), **design)
    levels = [0.05 / arms / len(p) for arms in families]
    return [
        shares(p[:, :arms] < level, p[-1, :arms] >= level)
        for arms, level in zip(families, levels, strict=True)
    ]


def arms_at_the_margin(
    studies: int, *, arms: int, seeds: int, margin: float, state: int = 0, **noise: Any
) -> tuple[Any, Any, Any]:
    """Studies of arms that differ from the base by the margin, every other one to the other side:
    its losses, theirs, and the true differences, (arms, 1)."""
    random = np.random.default_rng(state)
    base, others = losses(random, studies, arms=arms, seeds=seeds, **noise)
    true = margin * (-1.0) ** np.arange(arms)[:, None]
    return base, others + true[:, :, None], true


def false_equivalence(studies: int, *, blocked: bool, margin: float, **design: Any) -> Shares:
    """`arms_at_the_margin`: studies in which any is called equivalent.

    Args:
        margin: in nats/token.
    """
    made = arms_at_the_margin(studies, arms=max(FAMILIES), margin=margin, **design)
    base, others, true = made
    estimate = compare(base, others, blocked)
    found = []
    for arms in FAMILIES:
        low, high = (one[:arms] for one in estimate.interval(1 - 0.05 / arms))
        covered = (low <= true[:arms]) & (true[:arms] <= high)
        found.append(shares((-margin < low) & (high < margin), covered))
    return found


def diverging_arms(
    studies: int,
    *,
    arms: int,
    seeds: int,
    blocked: bool,
    both: bool,
    rate: float,
    steepness: float,
    state: int = 0,
    **noise: Any,
) -> tuple[Any, Any, Estimate, Any]:
    """Studies of arms that equal the base but for the seeds that diverge: its losses, theirs, their
    differences, and whether one of this sign may be called better or worse, (arms, studies).

    Args:
        both: whether runs of the base diverge as well.
        rate, steepness: see `without_diverged`.
    """
    random = np.random.default_rng(state)
    base, others = losses(random, studies, arms=arms, seeds=seeds, **noise)
    others = without_diverged(random, others, rate, steepness)
    if both:
        base = without_diverged(random, base, rate, steepness)
    parts = np.array([compare_incomplete(base, arm, blocked) for arm in others])
    found = Estimate(*parts.transpose(1, 0, 2))
    # A diverged seed is a bad result that the losses lack: see `stands`.
    is_allowed = np.where(found.mean < 0, np.isfinite(others).all(-1), np.isfinite(base).all(-1))
    return base, others, found, is_allowed


def lost_seeds(studies: int, *, blocked: bool, **design: Any) -> Shares:
    """`diverging_arms`: studies in which any is called better or worse, and intervals that contain
    the difference of the expected losses of finished runs, in blocks over the seeds with which both
    finish."""
    made = diverging_arms(studies, arms=max(FAMILIES), blocked=blocked, **design)
    base, others, found, is_allowed = made
    first = np.where(np.isfinite(others), base, np.nan) if blocked else base
    true = float(np.nanmean(others) - np.nanmean(first))
    covers = Estimate(found.mean - true, found.error, found.df).p
    levels = [0.05 / arms for arms in FAMILIES]
    return [
        shares(((found.p < level) & is_allowed)[:arms], covers[:arms] >= level)
        for arms, level in zip(FAMILIES, levels, strict=True)
    ]


def without_diverged(random: np.random.Generator, runs: Any, rate: float, steepness: float) -> Any:
    """NaN in place of the runs that diverged: a share `rate` of them, the more often the higher
    their loss would have been; with a steepness of 0 independently of it."""
    standardized = runs / runs.std()
    threshold = ndtri(rate) * math.hypot(1, steepness)
    chance = ndtr(steepness * standardized + threshold)
    return np.where(random.uniform(size=runs.shape) < chance, np.nan, runs)


def compare_incomplete(base: Any, arm: Any, blocked: bool) -> Any:
    """Mean, error and degrees of freedom, (3, studies), of studies (studies, seeds) that lack
    different seeds: those with equal counts are compared together. The error is infinite where an
    arm has less than two runs."""
    has = 2 * np.isfinite(base) + np.isfinite(arm)
    order = np.argsort(has, axis=-1)
    base, arm, has = (np.take_along_axis(one, order, axis=-1) for one in (base, arm, has))
    patterns, index = np.unique(has, axis=0, return_inverse=True)
    found = np.tile([[0.0], [np.inf], [1.0]], len(base))
    for number, pattern in enumerate(patterns):
        here = index.ravel() == number
        if min((pattern >= 2).sum(), (pattern % 2).sum()) > 1:
            one = compare(base[here], arm[here], blocked)
            found[:, here] = np.broadcast_arrays(one.mean, one.error, one.df)
    return found


def found_share(
    studies: int,
    *,
    seeds: int,
    effect: float,
    blocked: bool,
    arms: int = 1,
    correlation: float = 0.5,
    state: int = 0,
) -> float:
    """The share of studies that call an arm better which is so by `effect`, at the level of one of
    `arms`."""
    random = np.random.default_rng(state)
    base, (arm,) = losses(random, studies, arms=1, seeds=seeds, correlation=correlation)
    _, high = compare(base, arm - effect, blocked).interval(1 - 0.05 / arms)
    return float((high < 0).mean())
