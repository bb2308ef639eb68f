"""Studies by the thousand, judged by the functions that judge one: what share is wrong?

Every function returns shares of simulated studies. `tests/analysis/test_error_rates.py` asserts
them and `benchmarks/simulations.py` writes them into docs/statistics.md.
"""

import math
from typing import Any

import numpy as np

from smolctl.analysis.blocks import within_blocks
from smolctl.analysis.document_interval import over_documents, over_seeds
from smolctl.analysis.stats import SMALLEST_SPREAD, Estimate, sample, welch
from smolctl.analysis.tuning_gap import gap_bounds

SPREAD = 0.01  # of runs, in nats/token


def standard(random: np.random.Generator, shape: tuple[int, ...], tails: str = "gaussian") -> Any:
    """Noise of variance 1."""
    if tails == "gaussian":
        return random.normal(size=shape)
    assert tails == "t3"
    return random.standard_t(3, size=shape) / math.sqrt(3)


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
    if blocked:
        found = within_blocks(base, arm, least_spread=SMALLEST_SPREAD)
    else:
        found = welch(
            sample(base, least_spread=SMALLEST_SPREAD), sample(arm, least_spread=SMALLEST_SPREAD)
        )
    assert found is not None
    return found


def false_verdicts(
    studies: int,
    *,
    arms: int,
    seeds: int,
    blocked: bool,
    looks: tuple[int, ...] = (),
    drop: int = 0,
    state: int = 0,
    **noise: Any,
) -> tuple[float, float]:
    """Arms that equal the base: the share of studies with any false verdict at any look, and the
    least coverage of an arm's interval, at the last look.

    Args:
        drop: seeds that each arm lacks, others in the base and in the arms.
    """
    random = np.random.default_rng(state)
    base, others = losses(random, studies, arms=arms, seeds=seeds, **noise)
    if drop:
        base[:, -drop:] = np.nan
        others[:, :, :drop] = np.nan
    looks = looks or (seeds,)
    level = 0.05 / arms / len(looks)
    wrong = np.zeros(studies, bool)
    covered = np.ones(arms)
    for look in looks:
        for index, arm in enumerate(others):
            low, high = compare(base[:, :look], arm[:, :look], blocked).interval(1 - level)
            excludes = (low > 0) | (high < 0)
            covered[index] = 1 - excludes.mean()
            wrong |= excludes
    return float(wrong.mean()), float(covered.min())


def coverage(studies: int, *, seeds: int, blocked: bool, state: int = 0, **noise: Any) -> float:
    """The share of 95 % intervals that contain the true difference."""
    return false_verdicts(studies, arms=1, seeds=seeds, blocked=blocked, state=state, **noise)[1]


def diverged(studies: int, *, seeds: int, rate: float = 0.1, state: int = 0) -> tuple[float, float]:
    """An arm one seed of which diverged, judged on the others: the shares called better and worse.
    It equals the base where it does not diverge."""
    random = np.random.default_rng(state)
    base, (arm,) = losses(random, studies, arms=1, seeds=seeds, correlation=0.5)
    arm[:, -1] = np.nan
    low, high = compare(base, arm, True).interval(0.95)
    return float((high < 0).mean()), float((low > 0).mean())


# Expected loss above its least one, against the logarithm of the rate to base 2.
VALLEYS = {
    "parabola": lambda x: x**2,
    "steep": lambda x: np.where(x < 0, x**2, 4 * x**2),
    "exponential": lambda x: (np.exp(2 * x) - 1 - 2 * x) / (np.exp(-2) + 1),
    "cliff": lambda x: np.where(x < 0.3, x**2, 0.09 + 30 * (x - 0.3)),
}


def tuned(
    random: np.random.Generator,
    studies: int,
    valley: str,
    *,
    factor: float,
    rise: float,
    rates: int,
    seeds: int,
    noise_above: float,
    draws: int,
) -> tuple[Any, Any]:
    """The true gap at the chosen rate and its upper bound, of grids whose best rate is anywhere
    between the second and the last but one."""
    step = math.log2(factor)
    x = step * np.arange(rates)
    best = step * random.uniform(0.5, rates - 1.5, size=(studies, 1))
    truth = rise * VALLEYS[valley](x - best)
    spread = SPREAD * np.where(x > best, noise_above, 1)
    found = truth[:, :, None] + spread[:, :, None] * random.normal(size=(studies, rates, seeds))
    chosen = found.mean(axis=2).argmin(axis=1)
    parts = [slice(i, i + 200) for i in range(0, studies, 200)]  # to bound the memory
    bound = np.concatenate([gap_bounds(x, found[i], chosen[i], draws=draws) for i in parts])
    is_edge = (chosen == 0) | (chosen == rates - 1)
    return truth[np.arange(studies), chosen], np.where(is_edge, np.inf, bound)


def tuned_false_verdicts(
    studies: int, valley: str, *, arms: int, final_seeds: int, state: int = 0, **grid: Any
) -> tuple[float, float]:
    """Arms as good as the base at their own best rates, each trained at the rate its grid chose:
    the shares of studies with any false verdict, of the rule and of one that ignores tuning.

    As the true differences at the best rates are 0, the first also is the share of studies in which
    not every widened interval covers."""
    random = np.random.default_rng(state)
    grid = {"draws": 300, "noise_above": 1.0} | grid
    base, others = losses(random, studies, arms=arms, seeds=final_seeds, correlation=0.5)
    base_gap, base_bound = tuned(random, studies, valley, **grid)
    wrong, naive = np.zeros(studies, bool), np.zeros(studies, bool)
    for arm in others:
        gap, bound = tuned(random, studies, valley, **grid)
        found = compare(base + base_gap[:, None], arm + gap[:, None], True)
        low, high = found.interval(1 - 0.05 / arms)
        naive |= (low > 0) | (high < 0)
        wrong |= (low - bound > 0) | (high + base_bound < 0)
    return float(wrong.mean()), float(naive.mean())


def document_coverage(
    studies: int,
    *,
    seeds: int,
    documents: int,
    of_seeds: float = 1.0,
    of_documents: float = 1.0,
    both: float = 1.0,
    sizes: float = 1.0,
    tails: str = "gaussian",
    state: int = 0,
) -> tuple[float, float]:
    """The shares of 95 % intervals that contain the true difference: over seeds, for these
    documents, and over seeds and documents, for documents like these.

    Args:
        of_seeds, of_documents, both: spreads of the random effects.
        sizes: spread of the logarithm of the documents' tokens.
    """
    random = np.random.default_rng(state)
    tokens = np.exp(sizes * random.normal(size=documents)) * 1000
    shape = (studies, seeds, documents)
    by_document = of_documents * standard(random, (studies, 1, documents), tails)
    by_seed = of_seeds * standard(random, (studies, seeds, 1), tails)
    arm = (by_seed + by_document + both * random.normal(size=shape)) * tokens
    base = np.zeros(shape)
    found = over_seeds(base.sum(-1) / tokens.sum(), arm.sum(-1) / tokens.sum(), blocked=True)
    assert found is not None
    half = found.half_width(0.95)
    wide = np.hypot(half, over_documents(base, arm, tokens, 0.95))
    these = (by_document[:, 0] * tokens).sum(-1) / tokens.sum()
    return (
        float((np.abs(found.mean - these) <= half).mean()),
        float((np.abs(found.mean) <= wide).mean()),
    )


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
