"""The n-gram models that a trained model must beat, and their losses in prepared data."""

import importlib
import json
import math
import shutil
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from smollm2.data import ngram, open_prepared, prepare
from smollm2.data.ngram import (
    Floors,
    count_floors,
    floors_between,
    floors_on_windows,
    kneser_ney,
)
from smollm2.errors import UserError

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
VOCAB = 5


def keys_of(grams: np.ndarray) -> np.ndarray:
    return grams @ (VOCAB + 1) ** np.arange(grams.shape[1])[::-1]


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module("ngram_baseline")
    sys.modules.pop("ngram_baseline")


@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_probabilities_of_all_tokens_sum_to_one(order):
    grams = np.random.default_rng(0).integers(0, VOCAB - 1, (40, order))
    for context in ([0, 1], [1, 1], [VOCAB, 4]):  # counted, and after the start, never counted
        asked = np.array([[*context, token][-order:] for token in range(VOCAB)])
        found = kneser_ney(keys_of(grams), keys_of(asked), order, VOCAB)
        assert (found > 0).all()
        assert found.sum() == pytest.approx(1)


def test_a_bigram_is_discounted_by_hand():
    grams = np.array([[0, 1], [0, 1], [0, 2], [3, 2]])
    found = kneser_ney(keys_of(grams), keys_of(np.array([[0, 1], [0, 2]])), 2, VOCAB)
    # Token 1 follows one token, token 2 two: three distinct bigrams, two distinct ends.
    ends = [(1 - 0.75) / 3 + 0.75 * 2 / 3 / VOCAB, (2 - 0.75) / 3 + 0.75 * 2 / 3 / VOCAB]
    expected = [(2 - 0.75) / 3 + 0.75 * 2 / 3 * ends[0], (1 - 0.75) / 3 + 0.75 * 2 / 3 * ends[1]]
    assert found == pytest.approx(expected)


def test_a_gram_of_the_script_does_not_see_the_tokens_before_its_window(script):
    inputs, targets = np.array([[1, 2], [3, 4]]), np.array([[2, 0], [4, 1]])
    grams = np.array([[VOCAB, 1, 2], [1, 2, 0], [VOCAB, 3, 4], [3, 4, 1]])
    assert script.grams_in(inputs, targets, 3, VOCAB).tolist() == keys_of(grams).tolist()
    assert script.grams_in(inputs, targets, 1, VOCAB).tolist() == [2, 0, 4, 1]


def zipf(n: int, vocab_size: int, seed: int) -> np.ndarray:
    """Tokens in which each depends on the one before."""
    rng = np.random.default_rng(seed)
    steps = np.minimum(rng.zipf(1.5, n), vocab_size)
    return (np.cumsum(steps) % vocab_size).astype(np.uint16)


def joined(ids: np.ndarray, order: int) -> np.ndarray:
    """The keys of the n-grams that end at the third token and later, base 301."""
    columns = [ids[2 - back : len(ids) - back].astype(int) for back in reversed(range(order))]
    return np.stack(columns, axis=1) @ 301 ** np.arange(order)[::-1]


@pytest.mark.parametrize("at_once", [200, 3000, 2**23])
def test_the_parts_together_are_one_kneser_ney_model(monkeypatch, at_once):
    """However few trigrams are in memory, the losses are those of all at once."""
    monkeypatch.setattr(ngram, "AT_ONCE", at_once)
    train, test = zipf(2562, 300, 0), zipf(770, 300, 1)
    whole = count_floors(train, test, 300)[-1]
    assert whole.tokens == 2560
    for order, loss in ((1, whole.unigram), (3, whole.trigram)):
        keys, asked = (joined(ids, order) for ids in (train[:2562], test[:770]))
        chances = kneser_ney(keys, asked, order, 300)
        assert loss == pytest.approx(-np.log(chances).mean(), abs=1e-6)


def test_a_small_sample_is_spread_over_the_training_tokens():
    """Half of the text has tokens that the other half lacks: 512 tokens know both."""
    train = np.array([1, 2] * 4096 + [3, 4] * 4096, dtype=np.uint16)
    test = np.array([1, 2, 3, 4] * 100, dtype=np.uint16)
    sizes = count_floors(train, test, 100)
    assert [each.tokens for each in sizes] == [256 << i for i in range(6)] + [16128]
    assert sizes[0].unigram > math.log(4) + 1
    assert sizes[1].unigram == pytest.approx(math.log(4), abs=0.05)


def test_more_tokens_than_the_bound_are_not_counted(monkeypatch):
    monkeypatch.setattr(ngram, "MOST_COUNTED", 1024)
    monkeypatch.setattr(ngram, "MOST_SCORED", 256)
    sizes = count_floors(zipf(9000, 50, 0), zipf(3000, 50, 1), 50)
    assert [each.tokens for each in sizes] == [256, 512, 1024]


def test_trigrams_of_a_large_vocabulary_are_told_apart():
    """Of SmolLM2's 49,152 tokens and of a million, in 32 bits."""
    for vocab_size in (49_152, 1_000_000):
        top = np.array([vocab_size - 1, vocab_size - 2, vocab_size - 3] * 200, dtype=np.uint32)
        assert count_floors(top, top, vocab_size)[-1].trigram < 0.1
    assert count_floors(top, top, 2**21) == ()  # a key would not fit into 64 bits


def test_a_split_without_a_trigram_has_no_floor():
    few, more = np.array([1, 2], dtype=np.uint16), np.array([1, 2, 1], dtype=np.uint16)
    assert count_floors(few, more, VOCAB) == count_floors(more, few, VOCAB) == ()
    assert floors_between((), 100) is None
    assert [each.tokens for each in count_floors(more, more, VOCAB)] == [1]


def test_floors_on_windows_are_of_their_targets_alone(monkeypatch):
    train, test = zipf(2562, 300, 0), zipf(770, 300, 1)
    test[256:] = test[256:][::-1]  # text of another kind
    keys = joined(test, 3)  # the first is of the third token

    def on(numbers, n_tokens=2560):
        return floors_on_windows(train, test, 300, seq_len=32, numbers=numbers, n_tokens=n_tokens)

    for numbers in ([3], [1, 5, 9], [23]):
        wanted = np.concatenate([keys[32 * number - 1 :][:32] for number in numbers])
        chances = kneser_ney(joined(train, 3), wanted, 3, 300)
        assert on(numbers).trigram == pytest.approx(-np.log(chances).mean(), abs=1e-6)
    assert on([0, 1, 2]).trigram < on([20, 21, 22]).trigram - 0.05
    whole = count_floors(train, test, 300)[-1]
    assert on(range(24)).trigram == pytest.approx(whole.trigram, abs=0.01)
    assert on([0], n_tokens=10**9) == on([0])
    monkeypatch.setattr(ngram, "MOST_SCORED", 64)
    assert on(range(24)) == on([0, 12])
    assert floors_on_windows(train, test[:2], 300, seq_len=1, numbers=[0], n_tokens=9) is None


def test_floors_between_two_sizes_are_interpolated_in_the_logarithm():
    sizes = (Floors(100, 7.0, 6.0), Floors(400, 6.0, 4.0))
    between = floors_between(sizes, 200)
    assert (between.tokens, between.unigram, between.trigram) == pytest.approx((200, 6.5, 5.0))
    assert floors_between(sizes, 100) == sizes[0]
    assert floors_between(sizes, 5) == sizes[0]
    assert floors_between(sizes, 10**9) == sizes[1]  # an epoch later it knows no more


def test_the_trigram_of_stories_beats_the_unigram_and_both_learn(data):
    first, last = data.floors[0], data.floors[-1]
    assert last.trigram < last.unigram < first.unigram < math.log(data.vocab_size)
    counts = Counter(data.train.tolist())
    share = np.array([counts[token] / len(data.train) for token in data.test.tolist()])
    direct = -np.log(np.maximum(share, 1e-6)).mean()
    assert last.unigram == pytest.approx(direct, abs=0.02)
    assert data.floors_at(10 * len(data.train)) == last


def test_prepare_counts_with_progress_and_a_folder_keeps_the_floors(corpus, tmp_path):
    seen = []
    made = prepare(
        str(corpus), "train:300", out=tmp_path / "out", progress=lambda *args: seen.append(args)
    )
    counted = [(done, total) for stage, done, total in seen if stage == "count n-grams"]
    assert counted[0][0] == 0
    assert counted[-1][0] == counted[-1][1] == sum(each.tokens for each in made.floors)
    recorded = open_prepared(tmp_path / "out").recorded_floors
    assert recorded == count_floors(made.train, made.test, made.vocab_size)


def test_an_older_folder_has_its_floors_counted_when_they_are_asked_for(data, tmp_path):
    folder = shutil.copytree(data.path, tmp_path / "older")
    info = json.loads((folder / "data.json").read_text())
    del info["floors"]
    (folder / "data.json").write_text(json.dumps(info))
    older = open_prepared(folder)
    assert older.recorded_floors is None
    assert older.floors == data.floors
    assert older.fingerprint == data.fingerprint
    assert replace(older, source="renamed").floors_at(300) == data.floors_at(300)


RIGHT = {"tokens": 256, "unigram": 6.0, "trigram": 5.0}


@pytest.mark.parametrize(
    "floors",
    [
        None, {}, [1], [{}], [RIGHT | {"tokens": 0}], [RIGHT | {"tokens": 2.5}],
        [RIGHT | {"tokens": True}], [RIGHT, RIGHT], [RIGHT | {"unigram": "6"}],
        [RIGHT | {"trigram": -1.0}], [RIGHT | {"bigram": 5.5}], [RIGHT | {"unigram": None}],
    ],
)  # fmt: skip
def test_floors_that_prepare_does_not_write_are_damage(data, tmp_path, floors):
    folder = shutil.copytree(data.path, tmp_path / "damaged")
    info = json.loads((folder / "data.json").read_text()) | {"floors": floors}
    (folder / "data.json").write_text(json.dumps(info))
    with pytest.raises(UserError, match="floors is missing or not what `prepare` writes"):
        open_prepared(folder)
