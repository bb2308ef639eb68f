"""Intervals for the documents of the test, and for documents like them."""

import math

import numpy as np
import pytest

from smolctl.analysis.blocks import within_blocks
from smolctl.analysis.document_interval import document_intervals
from smolctl.analysis.stats import critical_t


def scores(seeds, documents, state=0):
    random = np.random.default_rng(state)
    tokens = random.integers(100, 10_000, documents).astype(float)
    base, arm = random.normal(3, 0.1, (2, seeds, documents)) * tokens
    return base, arm, tokens


def test_for_these_documents_it_is_the_interval_of_the_losses():
    base, arm, tokens = scores(4, 7)
    found = document_intervals(base, arm, tokens, blocked=True)
    losses = [one.sum(1) / tokens.sum() for one in (base, arm)]
    assert found.documents == 7
    assert found.these == pytest.approx(within_blocks(*losses).interval(0.95))
    assert found.mean == pytest.approx(losses[1].mean() - losses[0].mean())


def test_documents_like_these_widen_it_by_the_spread_between_documents():
    """By hand, for documents of equal length: t of 4 and of 3 degrees of freedom."""
    by_document = np.array([0.1, 0.3, 0.2, 0.5, 0.4])
    by_seed = np.array([0.0, 0.1, -0.1, 0.05])
    arm = 100 * (by_document + by_seed[:, None])
    found = document_intervals(np.zeros((4, 5)), arm, np.full(5, 100.0), blocked=True)
    over_seeds = critical_t(0.025, 3) * by_seed.std(ddof=1) / 2
    jackknife = math.sqrt(5 / 4) * by_document.std(ddof=1) / math.sqrt(5)
    half = math.hypot(over_seeds, critical_t(0.025, 4) * jackknife)
    centre = 0.3 + by_seed.mean()
    assert found.these == pytest.approx((centre - over_seeds, centre + over_seeds))
    assert found.like_these == pytest.approx((centre - half, centre + half))


def test_below_five_documents_nothing_is_said_of_others():
    assert document_intervals(*scores(4, 4), blocked=True).like_these is None
    assert document_intervals(*scores(4, 5), blocked=True).like_these is not None
    assert document_intervals(*scores(4, 1), blocked=False).these is not None


def test_one_seed_has_a_difference_without_an_interval():
    base, arm, tokens = scores(1, 6)
    found = document_intervals(base, arm, tokens, blocked=False)
    assert (found.these, found.like_these) == (None, None)
    assert found.mean == pytest.approx((arm - base).sum() / tokens.sum())


def test_a_seed_that_an_arm_lacks():
    base, arm, tokens = scores(5, 6)
    base[4] = arm[3] = np.nan
    found = document_intervals(base, arm, tokens, blocked=True)
    assert found.these[0] < found.mean < found.these[1]
    assert found.like_these[0] < found.these[0]
    assert document_intervals(base, arm, tokens, blocked=False).like_these is not None


@pytest.mark.parametrize("tokens", [[], [100.0, 0.0], [100.0, -1.0]])
def test_documents_without_tokens_are_refused(tokens):
    nats = np.ones((2, len(tokens)))
    with pytest.raises(ValueError, match="documents that have tokens"):
        document_intervals(nats, nats, np.array(tokens), blocked=True)
