"""The n-gram models that a trained model must beat."""

import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
VOCAB = 5


@pytest.fixture
def ngrams(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import ngram_baseline

    yield ngram_baseline
    sys.modules.pop("ngram_baseline")


@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_probabilities_of_all_tokens_sum_to_one(ngrams, order):
    grams = np.random.default_rng(0).integers(0, VOCAB - 1, (40, order))
    for context in ([0, 1], [1, 1], [VOCAB, 4]):  # counted, and after the start, never counted
        asked = np.array([[*context, token][-order:] for token in range(VOCAB)])
        found = ngrams.probabilities(grams, asked, VOCAB)
        assert (found > 0).all()
        assert found.sum() == pytest.approx(1)


def test_a_bigram_is_discounted_by_hand(ngrams):
    grams = np.array([[0, 1], [0, 1], [0, 2], [3, 2]])
    found = ngrams.probabilities(grams, np.array([[0, 1], [0, 2]]), VOCAB)
    # Token 1 follows one token, token 2 two: three distinct bigrams, two distinct ends.
    ends = [(1 - 0.75) / 3 + 0.75 * 2 / 3 / VOCAB, (2 - 0.75) / 3 + 0.75 * 2 / 3 / VOCAB]
    expected = [(2 - 0.75) / 3 + 0.75 * 2 / 3 * ends[0], (1 - 0.75) / 3 + 0.75 * 2 / 3 * ends[1]]
    assert found == pytest.approx(expected)


def test_a_gram_does_not_see_the_tokens_before_its_window(ngrams):
    inputs, targets = np.array([[1, 2], [3, 4]]), np.array([[2, 0], [4, 1]])
    grams = ngrams.grams_in(inputs, targets, 3, VOCAB)
    assert grams.tolist() == [[VOCAB, 1, 2], [1, 2, 0], [VOCAB, 3, 4], [3, 4, 1]]
    assert ngrams.grams_in(inputs, targets, 1, VOCAB).ravel().tolist() == [2, 0, 4, 1]
