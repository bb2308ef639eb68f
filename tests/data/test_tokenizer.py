"""Tokenizers: trained alike everywhere, loaded or refused in a sentence, accounting for bytes."""

import importlib
import json
import os
import random
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from smollm2.data import (
    end_of_text_id,
    load_tokenizer,
    parse_train_spec,
    token_bytes,
    tokenizer_fingerprint,
    train_tokenizer,
)
from smollm2.errors import UserError

module = importlib.import_module("smollm2.data.tokenizer")

draw = random.Random(0)
WORDS = ["".join(draw.choices("abcdeé猫", k=draw.randint(1, 6))) for _ in range(200)]
TEXTS = [" ".join(["the cat", "12", *draw.choices(WORDS, k=300)]) for _ in range(20)]


@pytest.fixture(scope="module")
def trained():
    return train_tokenizer(320, TEXTS)


@pytest.fixture(scope="module")
def trained_sizes(trained):
    return token_bytes(trained)


@pytest.fixture(scope="module")
def published_sizes(published):
    return token_bytes(published)


@pytest.fixture(scope="module")
def published(real_data):
    return load_tokenizer(str(real_data / "tokenizer"))


def test_training_is_deterministic_with_and_without_parallelism(trained):
    assert train_tokenizer(320, TEXTS).to_str() == trained.to_str()
    script = (
        "import json, sys; from smollm2.data import train_tokenizer;"
        "sys.stdout.buffer.write(train_tokenizer(320, json.load(sys.stdin)).to_str().encode())"
    )
    for parallel in ("true", "false"):
        output = subprocess.run(
            [sys.executable, "-c", script],
            input=json.dumps(TEXTS).encode(),
            stdout=subprocess.PIPE,
            check=True,
            env={**os.environ, "TOKENIZERS_PARALLELISM": parallel},
        ).stdout
        assert output.decode() == trained.to_str()


def test_trained_tokenizer_is_laid_out_like_smollm2s(trained):
    assert trained.get_vocab_size() == 320
    assert end_of_text_id(trained) == 0
    assert set(pre_tokenizers.ByteLevel.alphabet()) <= set(trained.get_vocab())
    assert trained.encode("12").tokens == ["1", "2"]
    assert [text for text, _ in trained.pre_tokenizer.pre_tokenize_str("the cat's 12")] == [
        "the",
        "Ġcat",
        "'s",
        "Ġ",
        "1",
        "2",
    ]


def test_small_sample_gives_fewer_tokens_than_asked_for():
    assert 257 <= train_tokenizer(5000, ["abc abc"]).get_vocab_size() < 300


def test_sample_is_bounded_per_document_and_in_all(monkeypatch):
    monkeypatch.setattr(module, "SAMPLE_BYTES_PER_DOCUMENT", 10)
    monkeypatch.setattr(module, "SAMPLE_BYTES", 25)
    read = []
    texts = (read.append(text) or text for text in ["é" * 9, "a" * 99, "b" * 99, "c" * 99, "d"])
    assert list(module._sample(texts)) == ["é" * 5, "a" * 10, "b" * 5]
    assert len(read) == 3


@given(text=st.text())
@settings(max_examples=300)
def test_token_bytes_add_up_to_the_text(trained, trained_sizes, text):
    assert trained_sizes[trained.encode(text).ids].sum() == len(text.encode())


@given(text=st.text(st.characters(max_codepoint=0x1FFFF, exclude_categories=["Cc", "Cs"])))
@settings(max_examples=200)
def test_token_bytes_of_the_published_tokenizer_add_up_to_the_text(
    published, published_sizes, text
):
    assert published_sizes.shape == (49152,)
    assert published_sizes[published.encode(text).ids].sum() == len(text.encode())


def test_bytes_the_published_tokenizer_drops_count_nowhere(published, published_sizes):
    ids = published.encode("a\x04b").ids
    assert published.decode(ids) == "ab"
    assert published_sizes[ids].sum() == 2


def test_token_bytes_are_zero_for_special_tokens(trained):
    tokenizer = Tokenizer.from_str(trained.to_str())
    tokenizer.add_special_tokens(["<|pad|>"])
    tokenizer.add_tokens([AddedToken("smöl")])
    sizes = token_bytes(tokenizer)
    assert sizes.dtype == np.uint16
    assert sizes[0] == sizes[tokenizer.token_to_id("<|pad|>")] == 0
    assert sizes[tokenizer.token_to_id("smöl")] == 5
    assert np.count_nonzero(sizes == 0) == 2


def not_byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def without_pre_tokenizer() -> Tokenizer:
    return Tokenizer(models.BPE({"a": 0, "b": 1}, []))


def adding_a_space() -> Tokenizer:
    tokenizer = train_tokenizer(300, TEXTS)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return tokenizer


def lowercasing() -> Tokenizer:
    tokenizer = train_tokenizer(300, TEXTS)
    tokenizer.normalizer = normalizers.Lowercase()
    return tokenizer


def with_foreign_characters() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE({"a": 0, "猫": 1}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


@pytest.mark.parametrize(
    "make",
    [not_byte_level, without_pre_tokenizer, adding_a_space, lowercasing, with_foreign_characters],
)
def test_tokenizer_that_loses_bytes_is_refused(make):
    with pytest.raises(UserError, match="each byte of a text"):
        token_bytes(make())


def test_text_that_spells_a_special_token_stays_text(trained, tmp_path):
    trained.save(str(tmp_path / "tokenizer.json"))
    for tokenizer in (trained, load_tokenizer(str(tmp_path))):
        ids = tokenizer.encode("a<|endoftext|>b").ids
        assert 0 not in ids
        assert tokenizer.decode(ids) == "a<|endoftext|>b"


def test_loaded_tokenizer_neither_cuts_nor_pads(trained, tmp_path):
    tokenizer = Tokenizer.from_str(trained.to_str())
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=50)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    loaded = load_tokenizer(str(tmp_path))
    assert [len(e) for e in loaded.encode_batch(["a", "a b c d e f"])] == [
        len(e) for e in trained.encode_batch(["a", "a b c d e f"])
    ]


def test_loaded_tokenizer_merges_without_dropout(trained, tmp_path):
    tokenizer = Tokenizer.from_str(trained.to_str())
    tokenizer.model.dropout = 0.9
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    text = " ".join(TEXTS)
    assert tokenizer.encode(text).ids != trained.encode(text).ids
    assert load_tokenizer(str(tmp_path)).encode(text).ids == trained.encode(text).ids


def test_folder_and_file_give_the_same_tokenizer(trained, tmp_path):
    trained.save(str(tmp_path / "tokenizer.json"), pretty=True)
    for spec in (tmp_path, tmp_path / "tokenizer.json"):
        loaded = load_tokenizer(str(spec))
        assert tokenizer_fingerprint(loaded) == tokenizer_fingerprint(trained)


def test_fingerprint_is_of_the_content(trained):
    fingerprint = tokenizer_fingerprint(trained)
    assert len(fingerprint) == 16
    assert int(fingerprint, 16) >= 0
    assert tokenizer_fingerprint(train_tokenizer(310, TEXTS)) != fingerprint


def test_fingerprint_ignores_an_unused_option_of_another_version():
    text = '{"a": [1, {"b": 0, "new": false}], "newer": null}'
    without = json.loads(text, object_hook=module._without_defaults)
    assert without == {"a": [1, {"b": 0}]}


@pytest.mark.parametrize(
    ("text", "expected"), [("</s>", 5), ("<|end_of_text|>", 5), ("<|endoftext|>", 5)]
)
def test_end_of_text_has_several_names(text, expected):
    assert end_of_text_id(Tokenizer(models.WordLevel({"a": 0, text: expected}))) == expected


def test_tokenizer_without_end_of_text_is_refused():
    with pytest.raises(UserError, match="ends a document"):
        end_of_text_id(not_byte_level())


@pytest.mark.parametrize("content", [b"", b"{", b"{}", b'{"model": null}', b"\xff\xfe\x00"])
def test_damaged_tokenizer_is_refused(tmp_path, content):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(UserError, match="is damaged"):
        load_tokenizer(str(tmp_path))


def test_missing_tokenizer_is_refused(tmp_path):
    with pytest.raises(UserError, match="There is no tokenizer"):
        load_tokenizer(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="Did you mean 'smollm2'"):
        load_tokenizer("smolm2")


@pytest.mark.parametrize("spec", ["smollm2", "hub:some/model"])
def test_tokenizer_on_an_unreachable_hub_is_refused(monkeypatch, tmp_path, spec):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"cannot be reached.*train:4096"):
        load_tokenizer(spec)


@pytest.mark.parametrize("spec", ["hub:model", "hub:a/b/c", "hub:/b"])
def test_misspelt_hub_tokenizer_is_refused(spec):
    with pytest.raises(UserError, match="hub:ORG/NAME"):
        load_tokenizer(spec)


def test_train_spec_gives_the_vocabulary_size():
    assert parse_train_spec("train:4096") == 4096
    assert parse_train_spec("smollm2") is None


@pytest.mark.parametrize(
    "spec",
    ["train:", "train:many", "train:299", "train:-5", "train:4e3", "train:1000001",
     "train:99999999999999999999", "train:" + "9" * 5000],
)  # fmt: skip
def test_bad_train_spec_is_refused(spec):
    with pytest.raises(UserError, match=r"at least 300.*train:4096"):
        parse_train_spec(spec)
