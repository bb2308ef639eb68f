"""Intervals for the documents of a test, and for documents like these."""

from typing import Any

import numpy as np
from support.simulated import standard

from smolctl.analysis.blocks import over_seeds
from smolctl.analysis.document_interval import over_documents

PART = 5_000  # studies at once, to bound the memory


def document_scores(
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
) -> tuple[Any, Any, Any]:
    """Nats of an arm that equals the base but for chance, (studies, seeds, documents); the true
    difference for these documents, (studies,); and their tokens.

    Args:
        of_seeds, of_documents, both: spreads of the random effects.
        sizes: spread of the logarithm of the documents' tokens.
    """
    tokens = np.exp(sizes * np.random.default_rng(documents).normal(size=documents)) * 1000
    random = np.random.default_rng(state)
    by_document = of_documents * standard(random, (studies, 1, documents), tails)
    by_seed = of_seeds * standard(random, (studies, seeds, 1), tails)
    own = both * standard(random, (studies, seeds, documents))
    arm = (by_seed + by_document + own) * tokens
    return arm, (by_document[:, 0] * tokens).sum(-1) / tokens.sum(), tokens


def half_widths(arm: Any, tokens: Any, confidence: float = 0.95) -> tuple[Any, Any, Any]:
    """The difference of an arm from a base without loss, and the half-widths of its intervals: over
    seeds, for these documents, and over seeds and documents, for documents like these."""
    base = np.zeros_like(arm)
    found = over_seeds(base.sum(-1) / tokens.sum(), arm.sum(-1) / tokens.sum(), blocked=True)
    assert found is not None
    half = found.half_width(confidence)
    return found.mean, half, np.hypot(half, over_documents(base, arm, tokens, confidence))


def document_coverage(studies: int, **design: Any) -> tuple[float, float]:
    """The shares of 95 % intervals that contain the true difference: for these documents, and for
    documents like these."""
    hits = np.zeros(2)
    for state, start in enumerate(range(0, studies, PART)):
        part = min(PART, studies - start)
        arm, true, tokens = document_scores(part, state=state, **design)
        mean, these, like = half_widths(arm, tokens)
        hits += (np.abs(mean - true) <= these).sum(), (np.abs(mean) <= like).sum()
    these_share, like_share = hits / studies
    return float(these_share), float(like_share)
