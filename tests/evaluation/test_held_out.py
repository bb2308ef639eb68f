"""Held-out text: each token counts for its document, and standard errors are over documents."""

import dataclasses
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smollm2.data import TokenData
from smollm2.evaluation.text import TextScore, held_out, ratio_of_sums, score_text
from smollm2.model.transformer import SmolLM2
from smollm2.protocol.resolve import resolve
from smollm2.protocol.run_config import RunConfig
from smollm2.runs.conditions import FEWEST_DOCUMENTS


def scores_of(documents) -> list[TextScore]:
    """A score for each (n_tokens, nats) of a document; each token is a byte of text."""
    return [TextScore(i, i, n, nats, 0, nats, n) for i, (n, nats) in enumerate(documents)]


def test_documents_of_one_size_have_the_standard_error_of_their_mean():
    means = np.array([2.0, 3.5, 1.0, 4.0, 2.5, 3.0, 0.5, 1.5, 2.0])
    found = held_out(scores_of([(10, 10 * mean) for mean in means]))
    assert found.loss.value == pytest.approx(means.mean())
    assert found.loss.stderr == pytest.approx(means.std(ddof=1) / 3)
    assert found.perplexity.stderr == pytest.approx(math.exp(means.mean()) * means.std(ddof=1) / 3)
    assert found.bits_per_byte.stderr == pytest.approx(means.std(ddof=1) / 3 / math.log(2))


def test_the_standard_error_of_unequal_documents_is_the_spread_of_repeated_samples():
    rng = np.random.default_rng(0)
    found, stderr = [], []
    for _ in range(2000):
        sizes = rng.integers(50, 150, 60)
        nats = sizes * (3.0 + 0.5 * rng.standard_normal(60))
        estimate = ratio_of_sums(nats, sizes.astype(float))
        found.append(estimate.value)
        stderr.append(estimate.stderr)
    assert np.mean(stderr) == pytest.approx(np.std(found), rel=0.05)


@given(st.lists(st.tuples(st.integers(1, 50), st.floats(0, 500)), min_size=1, max_size=20))
def test_windows_of_one_document_are_one_cluster(documents):
    whole = held_out(scores_of(documents))
    # Each document's tokens once more, in a later window: the same ratios, the same clusters.
    twice = scores_of(documents) + [
        TextScore(100 + s.window, s.document, s.n_tokens, s.nats, 0, s.nats, s.n_bytes)
        for s in scores_of(documents)
    ]
    assert held_out(twice).n_documents == len(documents)
    assert held_out(twice).loss.value == pytest.approx(whole.loss.value)
    if len(documents) < FEWEST_DOCUMENTS:
        assert held_out(twice).loss.stderr is None
    else:
        assert held_out(twice).loss.stderr == pytest.approx(whole.loss.stderr, abs=1e-9)


def test_each_token_counts_for_its_own_document(asked: RunConfig, data: TokenData):
    """Beside a plain walk over the split, whose documents end with their end-of-text."""
    model = SmolLM2(resolve(asked).on(data).model)
    expected: Counter[tuple[int, int]] = Counter()
    document = 0
    for place, token in enumerate(data.test.tolist()):
        if place >= 1:
            expected[(place - 1) // 32, document] += 1
        if token == data.end_of_text:
            document += 1
    whole = (len(data.test) - 1) // 32
    batches = score_text(model, data, "test", 32, 3, range(whole))
    scores = [score for batch in batches for score in batch]
    assert {(s.window, s.document): s.n_tokens for s in scores} == {
        key: n for key, n in expected.items() if key[0] < whole
    }
    assert len({s.document for s in scores}) > 2


def test_scoring_does_not_search_the_split(asked, data):
    class Unsearched(np.ndarray):
        def __eq__(self, other):
            raise AssertionError("the split was searched for the ends of its documents")

    model = SmolLM2(resolve(asked).on(data).model)
    sealed = dataclasses.replace(data, test=data.test.view(Unsearched))
    one, other = (list(score_text(model, text, "test", 32, 2, [1, 3])) for text in (sealed, data))
    assert one == other


def test_held_out_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="no scores"):
        held_out([])
