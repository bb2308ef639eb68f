"""Every byte of a text is in its tokens, or the tokenizer is refused, or the loss is said."""

import json

import numpy as np
import pytest
from support.command import run_main
from support.stories import stories, write_jsonl
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from smollm2.data import (
    ByteAccount,
    end_of_text_id,
    load_tokenizer,
    open_prepared,
    prepare,
    token_bytes,
    train_tokenizer,
)
from smollm2.data.byte_account import BYTE_OF
from smollm2.errors import UserError
from smollm2.evaluation.tasks.token_rows import encode_choice

pytestmark = pytest.mark.usefixtures("fresh_cache")
BYTE_LEVEL = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
    "use_regex": True,
}


@pytest.fixture(scope="module")
def layout() -> dict:
    return json.loads(train_tokenizer(320, stories(50)).to_str())


def tokenizer_of(layout: dict) -> Tokenizer:
    tokenizer = Tokenizer.from_str(json.dumps(layout))
    tokenizer.encode_special_tokens = True
    return tokenizer


def after(*steps: dict) -> dict:
    return {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [*steps, BYTE_LEVEL]}}


def removed(pattern: dict) -> dict:
    return {"type": "Split", "pattern": pattern, "behavior": "Removed", "invert": False}


LOSSY = {
    "spaces": after({"type": "WhitespaceSplit"}),
    "words": after({"type": "Whitespace"}),
    "bert": after({"type": "BertPreTokenizer"}),
    "split": after(removed({"String": " "})),
    "regex": after(removed({"Regex": "[0-9]+"})),
    "punctuation": after({"type": "Punctuation", "behavior": "Removed"}),
    "delimiter": after({"type": "CharDelimiterSplit", "delimiter": "_"}),
    "metaspace": after(
        {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "never", "split": False}
    ),
    "same length": after(
        {"type": "Metaspace", "replacement": "_", "prepend_scheme": "never", "split": False}
    ),
    "bytes twice": after(BYTE_LEVEL),
    "added space": after(BYTE_LEVEL | {"add_prefix_space": True}),
    "lower case": {"normalizer": {"type": "Lowercase"}},
    "composed": {"normalizer": {"type": "NFC"}},
    "stripped": {"normalizer": {"type": "Strip", "strip_left": True, "strip_right": True}},
    "replaced": {"normalizer": {"type": "Replace", "pattern": {"String": "a"}, "content": "b"}},
}


@pytest.mark.parametrize("change", LOSSY.values(), ids=LOSSY)
def test_a_tokenizer_that_loses_or_changes_bytes_is_refused(layout, change):
    with pytest.raises(UserError, match="each byte of a text"):
        ByteAccount(tokenizer_of(layout | change))


@pytest.mark.parametrize("name", ["spaces", "split", "same length"])
def test_the_refusal_shows_a_text_and_what_becomes_of_it(layout, name):
    with pytest.raises(UserError, match=r"It turns '.*The  Quick.*' into '.*The.*'\."):
        ByteAccount(tokenizer_of(layout | LOSSY[name]))


def test_prepare_refuses_it_and_leaves_nothing(layout, story_file, tmp_path, capsys):
    folder = tmp_path / "lossy"
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps(layout | LOSSY["spaces"]))
    options = ("--data", story_file, "--tokenizer", str(folder), "--out", str(tmp_path / "out"))
    code, stdout, stderr = run_main(capsys, "prepare", *options)
    assert (code, stdout) == (2, "")
    assert "each byte of a text. It turns" in stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lossy", "stories.jsonl"]


LATE = {
    "a word": removed({"String": "zebra"}),
    "a character": {"type": "CharDelimiterSplit", "delimiter": "\u00b6"},
}


@pytest.mark.parametrize("step", LATE.values(), ids=LATE)
def test_bytes_lost_late_in_a_corpus_are_noticed(layout, step, tmp_path):
    tokenizer_of(layout | after(step)).save(str(tmp_path / "tokenizer.json"))
    texts = [*stories(60), "At last a zebra came \u00b6 by."]
    source = write_jsonl(tmp_path / "a.jsonl", texts)
    with pytest.raises(UserError, match=r"It turns '.*At last a.*by\.' into"):
        prepare(source, str(tmp_path), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    whole = prepare(write_jsonl(tmp_path / "b.jsonl", texts[:-1]), str(tmp_path))
    assert sum(whole.n_bytes.values()) == sum(len(text.encode()) for text in texts[:-1])


@pytest.mark.parametrize("strip", ["lstrip", "rstrip"])
def test_an_added_token_that_swallows_spaces_is_refused_where_it_does(layout, tmp_path, strip):
    tokenizer = tokenizer_of(layout)
    tokenizer.add_tokens([AddedToken("zebra", **{strip: True})])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    source = write_jsonl(tmp_path / "a.jsonl", [*stories(60), "At last a zebra came by."])
    with pytest.raises(UserError, match="At last a zebra came by"):
        prepare(source, str(tmp_path))


def without(layout: dict, missing: str, **options) -> dict:
    """A tokenizer without merges that lacks some characters of the alphabet."""
    kept = [token for token in sorted(BYTE_OF) if token not in missing]
    vocab = {token: number for number, token in enumerate(["<|endoftext|>", "?", "<x>", *kept])}
    vocab = {token: vocab[token] for token in dict.fromkeys(vocab)}
    model = layout["model"] | {"vocab": vocab, "merges": []} | options
    return layout | {"model": model}


@pytest.mark.parametrize("unknown", [None, "?", "<x>"])
def test_text_with_bytes_that_have_no_token_is_refused(layout, tmp_path, unknown):
    tokenizer_of(without(layout, "\u00ea", unk_token=unknown)).save(
        str(tmp_path / "tokenizer.json")
    )
    texts = [*stories(60), "a zebra \u732b \u4e00 \uac00 sees"]
    source = write_jsonl(tmp_path / "a.jsonl", texts)
    with pytest.raises(UserError, match=r"It turns 'a zebra . . . sees' into"):
        prepare(source, str(tmp_path))
    assert prepare(write_jsonl(tmp_path / "b.jsonl", texts[:-1]), str(tmp_path)).notes == ()


def test_control_characters_without_a_token_are_counted_and_said(layout, tmp_path, capsys):
    missing = [token for token, byte in BYTE_OF.items() if byte in b"\x04\x06"]
    lacking = without(layout, "".join(missing))
    tokenizer_of(lacking).save(str(tmp_path / "tokenizer.json"))
    texts = [*stories(60), "a\x04b\x06", "c\x06d"]
    source = write_jsonl(tmp_path / "a.jsonl", texts)
    options = ("--data", source, "--tokenizer", str(tmp_path), "--out", str(tmp_path / "out"))
    code, _, stderr = run_main(capsys, "prepare", *options)
    data = open_prepared(tmp_path / "out")
    assert code == 0
    assert "Warning: The tokenizer has no token for 3 bytes" in stderr
    assert "in 2 documents" in data.notes[0]
    assert sum(data.n_bytes.values()) == sum(len(text.encode()) for text in texts) - 3
    kept = ByteAccount(tokenizer_of(lacking)).kept(b"a\x04b\x06\x07")
    assert kept == b"ab\x07"


def test_an_end_of_text_that_is_no_special_token_has_no_bytes(layout, tmp_path):
    tokenizer = tokenizer_of(layout | {"added_tokens": []})
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    end = end_of_text_id(tokenizer)
    assert token_bytes(tokenizer)[end] == len("<|endoftext|>")
    texts = stories(60)
    data = prepare(write_jsonl(tmp_path / "a.jsonl", texts), str(tmp_path))
    assert data.token_bytes[end] == 0
    assert sum(data.n_bytes.values()) == sum(len(text.encode()) for text in texts)


def test_a_token_of_more_than_65_535_bytes_is_counted(layout):
    tokenizer = tokenizer_of(layout)
    tokenizer.add_tokens([AddedToken("=" * 70_000)])
    sizes = token_bytes(tokenizer)
    assert sizes.dtype == np.uint32
    assert sizes[tokenizer.token_to_id("=" * 70_000)] == 70_000


def test_a_number_of_a_token_that_no_model_has_is_refused(layout, tmp_path):
    vocab = layout["model"]["vocab"] | {"zzzz": 4_000_000_000}
    content = json.dumps(layout | {"model": layout["model"] | {"vocab": vocab}})
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match="the number 4,000,000,000, more than"):
        load_tokenizer(str(tmp_path))


def test_a_tokenizer_without_tokens_is_refused():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(False)
    assert len(token_bytes(tokenizer)) == 0
    with pytest.raises(UserError, match="ends a document"):
        end_of_text_id(tokenizer)


def test_training_cuts_words_whose_square_would_take_hours(tmp_path, monkeypatch):
    monkeypatch.setattr("smollm2.data.tokenizer.LONGEST_WORD", 64)
    texts = [*stories(60), *(f"x {sign * 2000} y" for sign in "=a ")]
    data = prepare(write_jsonl(tmp_path / "a.jsonl", texts), "train:2000")
    assert 64 <= data.token_bytes.max() <= 65  # with a space before it
    assert sum(data.n_bytes.values()) == sum(len(text.encode()) for text in texts)


PANICS = {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}


def test_a_panic_is_a_sentence_and_prints_nothing(layout, tmp_path, capfd):
    (tmp_path / "tokenizer.json").write_text(json.dumps(layout | PANICS))
    with pytest.raises(UserError, match=r"'tokenizer\.json'|is damaged \(the tokenizers library"):
        load_tokenizer(str(tmp_path))
    assert capfd.readouterr().err == ""


def test_a_panic_while_encoding_is_a_sentence(layout):
    from smollm2.data import encode_text
    from smollm2.data.encode import Piece, encode

    class PanicException(BaseException):
        """Named as that of the library, which cannot be raised from here."""

    class Panicking:
        def encode(self, text, add_special_tokens):
            raise PanicException("index out of bounds")

        def encode_batch(self, texts, add_special_tokens):
            raise PanicException("index out of bounds")

    with pytest.raises(UserError, match="panics: index out of bounds"):
        encode_text(Panicking(), "text")
    with pytest.raises(UserError, match="panics: index out of bounds"):
        list(encode(Panicking(), iter([Piece("train", "text", True)])))


def test_normalizers_are_refused_whatever_they_do(layout):
    tokenizer = tokenizer_of(layout)
    tokenizer.normalizer = normalizers.Sequence([])
    with pytest.raises(UserError, match="each byte of a text"):
        token_bytes(tokenizer)


def test_a_choice_whose_bytes_are_lost_is_refused(layout):
    for name in ("spaces", "lower case"):
        tokenizer = tokenizer_of(layout | LOSSY[name])
        with pytest.raises(UserError, match="each byte of a text"):
            encode_choice(tokenizer, "The cat", " Sat on the mat")
    missing = next(token for token, byte in BYTE_OF.items() if byte == 4)
    lacking = tokenizer_of(without(layout, missing))
    assert encode_choice(lacking, "The cat", " sat\x04").n_bytes == 4
    assert encode_choice(tokenizer_of(layout), "The cat", " sat\x04").n_bytes == 5


def test_a_tokenizer_of_another_kind_may_keep_every_byte():
    vocab = {"<s>": 0, "\u2581The": 1, "\u2581cat": 2, "\u2581sat": 3}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    assert encode_choice(tokenizer, "The cat", " sat").tokens == [1, 2, 3]
    with pytest.raises(UserError, match="It turns 'The cat ran'"):
        encode_choice(tokenizer, "The cat", " ran")
