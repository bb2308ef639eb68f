"""The tokens of a prepared text: those of its documents as a whole, counted, and cut on request."""

import importlib
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.stories import STORY, stories, text_of, write_jsonl

from smollm2.data import load_tokenizer, prepare, train_tokenizer

pytestmark = pytest.mark.usefixtures("fresh_cache")

# The package re-exports a function under the name of this module.
prepare_module = importlib.import_module("smollm2.data.prepare")
encode_module = importlib.import_module("smollm2.data.encode")


@pytest.fixture(scope="module")
def spaced_tokenizer():
    """It has tokens for two and three spaces, for words and for words after a space."""
    return train_tokenizer(300, ["ab c    ab\n   c   d   ab  e. " * 50])


@given(
    st.lists(st.sampled_from(["   ", "     ", "\n  ", "1 ", "e."]), min_size=5),
    st.integers(14, 40),
)
@settings(max_examples=200)
def test_cut_between_two_words_changes_no_token(spaced_tokenizer, between, size):
    text = "".join(f"{some}ab c d" for some in between)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encode_module, "PIECE_CHARACTERS", size)
        pieces = list(encode_module.cut([("train", text)]))
    assert "".join(piece.text for piece in pieces) == text
    assert [piece.ends_document for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert all(len(piece.text) <= 2 * size for piece in pieces)
    ids = [i for piece in pieces for i in spaced_tokenizer.encode(piece.text).ids]
    assert ids == spaced_tokenizer.encode(text).ids


def test_text_without_words_is_cut_all_the_same(monkeypatch):
    monkeypatch.setattr(encode_module, "PIECE_CHARACTERS", 10)
    pieces = list(encode_module.cut([("test", "猫" * 45)]))
    assert [len(piece.text) for piece in pieces] == [10, 10, 10, 15]


def test_long_document_has_the_tokens_it_has_as_a_whole(tmp_path, tokenizer):
    (tmp_path / "long.txt").write_text(STORY * 2000)
    data = prepare(str(tmp_path / "long.txt"), tokenizer)
    (train,) = text_of(data, "train")
    assert len(train) > 10 * encode_module.PIECE_CHARACTERS
    assert data.train[:-1].tolist() == data.tokenizer.encode(train).ids


def test_counts_are_those_of_the_files(story_file, tokenizer):
    data = prepare(story_file, tokenizer)
    for split in ("train", "validation", "test"):
        tokens = getattr(data, split)
        assert tokens.dtype == np.uint16
        assert not tokens.flags.writeable
        assert np.count_nonzero(tokens == data.end_of_text) == data.documents[split]
        assert tokens[-1] == data.end_of_text
        assert data.n_bytes[split] == sum(len(text.encode()) for text in text_of(data, split))
        assert data.n_bytes[split] == data.token_bytes[tokens].sum()
    assert sum(data.n_bytes.values()) == sum(len(text.encode()) for text in stories(100))
    assert data.vocab_size == len(data.token_bytes) == data.tokenizer.get_vocab_size()
    assert data.source == "stories.jsonl"


def test_special_token_spelt_in_the_text_stays_text(tmp_path, tokenizer):
    texts = [f"{text} <|endoftext|> and on" for text in stories(40)]
    data = prepare(write_jsonl(tmp_path / "a.jsonl", texts), tokenizer)
    assert sum(data.documents.values()) == 40
    assert set(text_of(data, "train")) <= set(texts)


def test_large_vocabulary_is_stored_in_32_bits(story_file, tokenizer, tmp_path):
    large = load_tokenizer(tokenizer)
    large.add_tokens([f"extra{i}" for i in range(2**16)])
    large.save(str(tmp_path / "tokenizer.json"))
    data = prepare(story_file, str(tmp_path / "tokenizer.json"))
    assert data.vocab_size > 2**16
    assert data.train.dtype == np.uint32
    assert set(text_of(data, "train")) <= set(stories(100))


def test_batches_do_not_matter(story_file, tokenizer, tmp_path, monkeypatch):
    whole = prepare(story_file, tokenizer, max_tokens=900)
    monkeypatch.setattr(encode_module, "BATCH_CHARACTERS", 100)
    assert prepare(story_file, tokenizer, out=tmp_path / "out", max_tokens=900).fingerprint == (
        whole.fingerprint
    )


@pytest.mark.parametrize("max_tokens", [1, 100, 1000])
def test_max_tokens_cuts_the_train_split(story_file, tokenizer, max_tokens, monkeypatch):
    monkeypatch.setattr(encode_module, "PIECE_CHARACTERS", 20)
    data = prepare(story_file, tokenizer, max_tokens=max_tokens)
    whole = prepare(story_file, tokenizer)
    assert data.train.tolist() == whole.train[:max_tokens].tolist()
    assert data.n_bytes["train"] == data.token_bytes[data.train].sum()
    ends = np.count_nonzero(data.train == data.end_of_text)
    assert data.documents["train"] == ends + (data.train[-1] != data.end_of_text)
    assert data.documents["validation"] >= 1
    assert data.documents["test"] >= 1
    assert data.validation[-1] == data.test[-1] == data.end_of_text
    assert set(text_of(data, "validation")) <= set(text_of(whole, "validation"))


@pytest.mark.parametrize("last", ["validation", "test"])
def test_max_tokens_leaves_a_whole_held_out_document(
    story_file, tokenizer, tmp_path, monkeypatch, last
):
    whole = prepare(story_file, tokenizer)
    others = [split for split in ("train", "validation", "test") if split != last]
    texts = [text for split in (*others, last) for text in text_of(whole, split)]
    monkeypatch.setattr(encode_module, "PIECE_CHARACTERS", 20)
    monkeypatch.setattr(encode_module, "BATCH_CHARACTERS", 50)
    data = prepare(write_jsonl(tmp_path / "sorted.jsonl", texts), tokenizer, max_tokens=10)
    for split in ("validation", "test"):
        seen = text_of(data, split)
        assert seen == text_of(whole, split)[: len(seen)]
    assert data.documents[last] == 1


def test_hub_source_stops_at_its_default(hub, tokenizer, monkeypatch):
    hub[1].extend({"text": text} for text in stories(100))
    monkeypatch.setattr(prepare_module, "HUB_TOKENS", 500)
    data = prepare("hub:some/set", tokenizer)
    assert len(data.train) == 500
    assert data.source == "hub:some/set"
    assert json.loads((data.path / "data.json").read_text())["max_tokens"] == 500


def test_tokenizer_is_trained_on_training_text_alone(tmp_path):
    names = [f"q{letter}z" for letter in "abcdefghijklmnopqrstuvwxy"]
    texts = [f"{text} {name * 30}" for text, name in zip(stories(25), names, strict=True)]
    data = prepare(write_jsonl(tmp_path / "a.jsonl", texts), "train:400")
    expected = train_tokenizer(400, text_of(data, "train"))
    assert data.tokenizer.to_str() == expected.to_str()
    assert train_tokenizer(400, texts).to_str() != expected.to_str()


def test_progress_names_what_is_being_done(story_file):
    seen = []
    data = prepare(
        story_file, "train:300", max_tokens=2000, progress=lambda *args: seen.append(args)
    )
    assert list(dict.fromkeys(stage for stage, _, _ in seen)) == [
        "scan",
        "train tokenizer",
        "tokenize",
        "count n-grams",
    ]
    assert ("scan", 100, None) in seen
    assert ("tokenize", len(data.train), 2000) in seen


def test_real_novels_are_prepared_whole_with_the_published_tokenizer(real_data):
    novels, published = real_data / "corpus/novels.jsonl.gz", real_data / "tokenizer"
    data = prepare(str(novels), str(published), max_tokens=200_000)
    assert len(data.train) == 200_000
    assert data.vocab_size == 49152
    for split in ("train", "validation"):
        assert 3.5 < data.n_bytes[split] / len(getattr(data, split)) < 5
