"""Documents in, token files out: each format, each bad input, and what a prepared folder keeps."""

import gzip
import importlib
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smollm2.data import (
    documents,
    find_prepared,
    load_tokenizer,
    open_prepared,
    prepare,
    source_name,
    splits,
    train_tokenizer,
)
from smollm2.errors import RunError, UserError

# The package re-exports functions under the names of these modules.
documents_module = importlib.import_module("smollm2.data.documents")
prepare_module = importlib.import_module("smollm2.data.prepare")

STORY = "The cat sat on the mat, and the hat of the cat sat on the rat. "


def stories(count: int) -> list[str]:
    return [f"Story number {i}. {STORY * (1 + i % 3)}" for i in range(count)]


def write_jsonl(path: Path, texts: list[str]) -> str:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("SMOLCTL_CACHE", str(folder))
    return folder


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(320, stories(50)).save(str(folder / "tokenizer.json"))
    return str(folder)


@pytest.fixture(scope="module")
def spaced_tokenizer():
    """It has tokens for two and three spaces, for words and for words after a space."""
    return train_tokenizer(300, ["ab c    ab\n   c   d   ab  e. " * 50])


@pytest.fixture
def corpus(tmp_path):
    return write_jsonl(tmp_path / "corpus.jsonl", stories(100))


def text_of(data, split: str) -> list[str]:
    """The documents of a split, decoded."""
    tokens = getattr(data, split).tolist()
    texts, document = [], []
    for token in tokens:
        if token == data.end_of_text:
            texts.append(data.tokenizer.decode(document))
            document = []
        else:
            document.append(token)
    return [*texts, data.tokenizer.decode(document)] if document else texts


# Sources


def test_each_format_gives_its_documents(tmp_path):
    texts = ["one line\nand another\n", "zwölf Bücher 猫\n"]
    lines = "".join(json.dumps({"id": 1, "text": text}) + "\n" for text in texts).encode()
    (tmp_path / "a.jsonl").write_bytes(lines)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines))
    with pa.output_stream(str(tmp_path / "c.jsonl.zst"), compression="zstd") as file:
        file.write(lines)
    pq.write_table(pa.table({"id": [1, 2, 3], "text": [*texts, None]}), tmp_path / "d.parquet")
    for name in ("a.jsonl", "b.jsonl.gz", "c.jsonl.zst", "d.parquet"):
        assert list(documents(str(tmp_path / name))) == texts
    for name in ("e.txt", "f.md"):
        (tmp_path / name).write_bytes(texts[1].encode())
        assert list(documents(str(tmp_path / name))) == texts[1:]
    assert list(documents(str(tmp_path))) == texts * 4 + texts[1:] * 2


def test_folder_is_read_recursively_sorted_and_without_hidden_files(tmp_path):
    for name in ("b/2.txt", "b/1.txt", "a.md", ".hidden/x.txt", "b/.y.txt", "b/picture.png"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(name)
    assert list(documents(str(tmp_path))) == ["a.md", "b/1.txt", "b/2.txt"]


def test_documents_of_whitespace_are_skipped(tmp_path):
    source = write_jsonl(tmp_path / "a.jsonl", ["", "one", " \n\t", "two"])
    assert list(documents(source)) == ["one", "two"]


def test_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeffone".encode())
    (tmp_path / "b.jsonl").write_bytes('\ufeff{"text": "two"}'.encode())
    assert list(documents(str(tmp_path))) == ["one", "two"]


@given(text=st.text("ab é猫\n", min_size=1).filter(str.strip), stretch=st.integers(4, 20))
@settings(deadline=None)
def test_long_text_file_is_read_in_stretches_cut_at_whitespace(tmp_path_factory, text, stretch):
    path = tmp_path_factory.mktemp("long") / "long.txt"
    path.write_bytes(text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents_module, "TEXT_STRETCH", stretch)
        parts = list(documents_module._text_file(path))
    assert "".join(parts) == text
    for part in parts[:-1]:
        assert len(part.encode()) <= stretch
        assert part[-1] in " \n" or not set(part) & set(" \n")


def test_builtin_is_python_source_the_same_each_time():
    first = list(documents("builtin"))
    assert len(first) > 200
    assert sum(map(len, first)) > 5_000_000
    assert first == list(documents("builtin"))
    assert any("class TestCase" in text for text in first)  # unittest, but not the tests:
    assert not any(path.match("test/*") for path in documents_module.stdlib_files())


def test_python_without_sources_has_no_builtin_corpus(monkeypatch, tmp_path):
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path / "python311.zip"))
    with pytest.raises(UserError, match=r"without the sources.*--data"):
        documents("builtin")


def test_source_name_never_holds_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert source_name(str(tmp_path / "novels.jsonl.gz")) == "novels.jsonl.gz"
    assert source_name(".") == tmp_path.name
    assert source_name("builtin") == "builtin"
    assert source_name("smollm-corpus") == "hub:HuggingFaceTB/smollm-corpus/cosmopedia-v2"


BAD_FILES = {
    "binary": ("a.txt", b"ab\ncd\0", r"'a.txt' is a binary file \(a zero byte on line 2\)"),
    "latin-1": ("a.md", b"one\ntwo\ncaf\xe9 \n", r"'a.md' is not UTF-8 text \(line 3\)"),
    "latin-1 in jsonl": ("a.jsonl", b'{"text": "a"}\n{"text": "\xe9"}', r"UTF-8 text \(line 2\)"),
    "broken line": ("a.jsonl", b'{"text": "a"}\n\n{"text": ', r"'a.jsonl', line 3: broken JSON"),
    "other field": ("a.jsonl", b'{"body": "a", "id": 1}', r"line 1.*`text`, found body, id"),
    "text no string": ("a.jsonl", b'{"text": null}', r"line 1.*a string in the field `text`"),
    "no object": ("a.jsonl", b'{"text": "a"}\n["a"]', r"line 2.*found list"),
    "empty object": ("a.jsonl", b"{}", r"line 1.*found no field"),
    "surrogate": ("a.jsonl", b'{"text": "\\ud800"}', r"line 1.*half of a surrogate pair"),
    "no gzip": ("a.jsonl.gz", b'{"text": "a"}', r"Cannot read 'a.jsonl.gz'.*Not a gzipped file"),
    "cut gzip": ("a.jsonl.gz", gzip.compress(b'{"text": "a"}')[:-9], "Cannot read 'a.jsonl.gz'"),
    "no zstd": ("a.jsonl.zst", b'{"text": "a"}', "Cannot read 'a.jsonl.zst'"),
    "no parquet": ("a.parquet", b"PAR1", "'a.parquet' is not a readable Parquet file"),
    "empty": ("a.txt", b"", "There is no text in 'a.txt'"),
    "only whitespace": ("a.txt", b" \n ", "There is no text in 'a.txt'"),
    "empty jsonl": ("a.jsonl", b"", "There is no text in 'a.jsonl'"),
    "unsupported": ("a.pdf", b"text", r"Cannot read 'a.pdf' as text: expected .txt, .md"),
    "compressed parquet": ("a.parquet.gz", b"", "Cannot read 'a.parquet.gz' as text"),
}


@pytest.mark.parametrize(("name", "content", "message"), BAD_FILES.values(), ids=BAD_FILES)
def test_bad_file_is_refused_naming_file_and_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        list(documents(str(tmp_path / name)))
    assert str(tmp_path) not in str(error.value)


def test_line_of_an_error_far_into_a_long_file_is_right(tmp_path, monkeypatch):
    monkeypatch.setattr(documents_module, "TEXT_STRETCH", 16)
    (tmp_path / "a.txt").write_bytes(b"a line\n" * 20 + b"caf\xe9\n")
    with pytest.raises(UserError, match="line 21"):
        list(documents(str(tmp_path / "a.txt")))


@pytest.mark.parametrize("column", [{"body": ["a"]}, {"text": [1]}])
def test_parquet_without_text_is_refused(tmp_path, column):
    pq.write_table(pa.table(column), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=f"'a.parquet'.*columns {next(iter(column))}"):
        list(documents(str(tmp_path / "a.parquet")))


def test_missing_source_is_refused_at_once_with_the_nearest_name(tmp_path):
    (tmp_path / "novels.txt").write_text("text")
    with pytest.raises(UserError, match=r"Did you mean 'novels.txt'"):
        documents(str(tmp_path / "novel.txt"))
    with pytest.raises(UserError, match="--data builtin"):
        documents(str(tmp_path / "no" / "such" / "file.txt"))


def test_folder_without_text_is_refused(tmp_path):
    (tmp_path / "picture.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"No text in the folder.*expected \.txt"):
        documents(str(tmp_path))


@pytest.mark.parametrize("source", ["hub:", "hub:name", "hub:a//c", "hub:/b"])
def test_misspelt_hub_source_is_refused(source):
    with pytest.raises(UserError, match="expected hub:ORG/NAME"):
        documents(source)


@pytest.mark.parametrize("source", ["smollm-corpus", "hub:roneneldan/TinyStories"])
def test_unreachable_hub_is_refused(monkeypatch, source):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"cannot be reached.*--data builtin"):
        next(documents(source))


def test_unknown_hub_data_set_is_refused(monkeypatch):
    from huggingface_hub.errors import RepositoryNotFoundError

    def unknown(*args, **options):
        raise RepositoryNotFoundError("404", response=MagicMock())

    monkeypatch.setattr("huggingface_hub.HfApi.repo_info", unknown)
    with pytest.raises(UserError, match=r"no public dataset 'no/such'.*--data builtin"):
        next(documents("hub:no/such"))


@pytest.fixture
def hub(monkeypatch):
    """A hub that answers with the rows put into it; the loader's arguments are kept."""
    calls, rows = [], []

    def load(repo, config, **options):
        calls.append((repo, config, options))
        for row in rows:
            if isinstance(row, Exception):
                raise row
        return iter(rows)

    monkeypatch.setattr("huggingface_hub.HfApi.repo_info", lambda *args, **options: None)
    monkeypatch.setattr("datasets.load_dataset", load)
    return calls, rows


def test_hub_is_streamed_from_the_named_configuration(hub):
    calls, rows = hub
    rows += [{"text": "a"}, {"text": " "}, {"text": "b"}]
    assert list(documents("smollm-corpus")) == ["a", "b"]
    assert list(documents("hub:roneneldan/TinyStories")) == ["a", "b"]
    streamed = {"split": "train", "streaming": True}
    assert calls == [
        ("HuggingFaceTB/smollm-corpus", "cosmopedia-v2", streamed),
        ("roneneldan/TinyStories", None, streamed),
    ]


def test_hub_data_set_that_cannot_be_loaded_is_refused(hub):
    hub[1].append(ValueError("Config name is missing. Please pick one among: ['a', 'b']"))
    with pytest.raises(UserError, match=r"\['a', 'b'\].*hub:ORG/NAME/CONFIG.*--data builtin"):
        next(documents("hub:some/set"))


def test_hub_data_set_without_text_is_refused(hub):
    hub[1].append({"question": "a", "answer": "b"})
    with pytest.raises(UserError, match="no text column `text` but question, answer"):
        next(documents("hub:some/set"))


# Splitting


def held_out(data) -> set[str]:
    return set(text_of(data, "validation")) | set(text_of(data, "test"))


def test_many_documents_are_split_by_their_hash(tmp_path, tokenizer):
    texts = stories(3000)
    data = prepare(write_jsonl(tmp_path / "a.jsonl", texts), tokenizer)
    assert sum(data.documents.values()) == 3000
    for split in ("validation", "test"):
        assert 100 < data.documents[split] < 200
    more = prepare(write_jsonl(tmp_path / "b.jsonl", [*texts[::-1], "new"]), tokenizer)
    assert held_out(data) <= held_out(more) <= held_out(data) | {"new"}
    every = [text for split in ("train", "validation", "test") for text in text_of(data, split)]
    assert sorted(every) == sorted(texts)


@pytest.mark.parametrize(("count", "expected"), [(20, 1), (100, 5), (999, 50)])
def test_some_documents_are_split_by_rank(tmp_path, tokenizer, count, expected):
    data = prepare(write_jsonl(tmp_path / "a.jsonl", stories(count)), tokenizer)
    assert data.documents["validation"] == data.documents["test"] == expected
    assert data.documents["train"] == count - 2 * expected


def test_duplicates_fall_on_one_side(tmp_path, tokenizer):
    for count in (30, 1200):
        source = write_jsonl(tmp_path / f"{count}.jsonl", stories(count) * 2)
        data = prepare(source, tokenizer)
        splits = [set(text_of(data, split)) for split in ("train", "validation", "test")]
        assert sum(map(len, splits)) == len(set.union(*splits)) == count


def test_few_documents_are_held_out_in_stretches(tmp_path, tokenizer):
    texts = [f"{name} " + STORY * 40 for name in ("Ann", "Bob", "Cid")]
    data = prepare(write_jsonl(tmp_path / "a.jsonl", texts * 2), tokenizer)
    parts = zip(*(text_of(data, split) for split in ("train", "validation", "test")), strict=True)
    assert ["".join(part) for part in parts] == texts * 2
    total = sum(data.n_bytes.values())
    assert data.n_bytes["train"] / total == pytest.approx(0.9, abs=0.01)
    assert data.n_bytes["validation"] / total == pytest.approx(0.05, abs=0.01)
    for split in ("validation", "test"):
        assert all(text.startswith(" ") for text in text_of(data, split))


@given(text=st.text(min_size=1))
def test_stretches_are_the_text_in_order(text):
    parts = splits._stretches(text)
    assert "".join(part for _, part in parts) == text
    assert [split for split, _ in parts] == sorted(
        (split for split, _ in parts), key=splits.SPLITS.index
    )


def test_corpus_too_small_to_hold_anything_out_is_refused(tmp_path, tokenizer):
    (tmp_path / "a.txt").write_text("word")
    with pytest.raises(UserError, match=r"'a.txt' is too small: nothing is left for"):
        prepare(str(tmp_path / "a.txt"), tokenizer)


# Encoding


@given(
    st.lists(st.sampled_from(["   ", "     ", "\n  ", "1 ", "e."]), min_size=5),
    st.integers(14, 40),
)
@settings(deadline=None, max_examples=200)
def test_cut_between_two_words_changes_no_token(spaced_tokenizer, between, size):
    text = "".join(f"{some}ab c d" for some in between)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare_module, "PIECE_CHARACTERS", size)
        pieces = list(prepare_module._pieces([("train", text)]))
    assert "".join(piece.text for piece in pieces) == text
    assert [piece.ends_document for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert all(len(piece.text) <= 2 * size for piece in pieces)
    ids = [i for piece in pieces for i in spaced_tokenizer.encode(piece.text).ids]
    assert ids == spaced_tokenizer.encode(text).ids


def test_text_without_words_is_cut_all_the_same(monkeypatch):
    monkeypatch.setattr(prepare_module, "PIECE_CHARACTERS", 10)
    pieces = list(prepare_module._pieces([("test", "猫" * 45)]))
    assert [len(piece.text) for piece in pieces] == [10, 10, 10, 15]


def test_long_document_has_the_tokens_it_has_as_a_whole(tmp_path, tokenizer):
    (tmp_path / "long.txt").write_text(STORY * 2000)
    data = prepare(str(tmp_path / "long.txt"), tokenizer)
    (train,) = text_of(data, "train")
    assert len(train) > 10 * prepare_module.PIECE_CHARACTERS
    assert data.train[:-1].tolist() == data.tokenizer.encode(train).ids


def test_counts_are_those_of_the_files(corpus, tokenizer):
    data = prepare(corpus, tokenizer)
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
    assert data.source == "corpus.jsonl"


def test_special_token_spelt_in_the_text_stays_text(tmp_path, tokenizer):
    texts = [f"{text} <|endoftext|> and on" for text in stories(40)]
    data = prepare(write_jsonl(tmp_path / "a.jsonl", texts), tokenizer)
    assert sum(data.documents.values()) == 40
    assert set(text_of(data, "train")) <= set(texts)


def test_large_vocabulary_is_stored_in_32_bits(corpus, tokenizer, tmp_path):
    large = load_tokenizer(tokenizer)
    large.add_tokens([f"extra{i}" for i in range(2**16)])
    large.save(str(tmp_path / "tokenizer.json"))
    data = prepare(corpus, str(tmp_path / "tokenizer.json"))
    assert data.vocab_size > 2**16
    assert data.train.dtype == np.uint32
    assert set(text_of(data, "train")) <= set(stories(100))


def test_batches_do_not_matter(corpus, tokenizer, tmp_path, monkeypatch):
    whole = prepare(corpus, tokenizer, max_tokens=900)
    monkeypatch.setattr(prepare_module, "BATCH_CHARACTERS", 100)
    assert prepare(corpus, tokenizer, out=tmp_path / "out", max_tokens=900).fingerprint == (
        whole.fingerprint
    )


@pytest.mark.parametrize("max_tokens", [1, 100, 1000])
def test_max_tokens_cuts_the_train_split(corpus, tokenizer, max_tokens, monkeypatch):
    monkeypatch.setattr(prepare_module, "PIECE_CHARACTERS", 20)
    data = prepare(corpus, tokenizer, max_tokens=max_tokens)
    whole = prepare(corpus, tokenizer)
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
    corpus, tokenizer, tmp_path, monkeypatch, last
):
    whole = prepare(corpus, tokenizer)
    others = [split for split in ("train", "validation", "test") if split != last]
    texts = [text for split in (*others, last) for text in text_of(whole, split)]
    monkeypatch.setattr(prepare_module, "PIECE_CHARACTERS", 20)
    monkeypatch.setattr(prepare_module, "BATCH_CHARACTERS", 50)
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


def test_progress_tells_what_is_being_done(corpus):
    seen = []
    data = prepare(corpus, "train:300", max_tokens=2000, progress=lambda *args: seen.append(args))
    assert list(dict.fromkeys(stage for stage, _, _ in seen)) == [
        "scan",
        "train tokenizer",
        "tokenize",
    ]
    assert ("scan", 100, None) in seen
    assert seen[-1] == ("tokenize", len(data.train), 2000)


# Folders


def test_prepared_folder_opens_as_it_was_written(corpus, tokenizer, tmp_path):
    written = prepare(corpus, tokenizer, out=tmp_path / "sub" / "out")
    moved = (tmp_path / "sub" / "out").rename(tmp_path / "elsewhere")
    for opened in (open_prepared(moved), prepare(str(moved), None), prepare(str(moved), tokenizer)):
        assert opened.fingerprint == written.fingerprint
        assert opened.documents == written.documents
        assert opened.train.tolist() == written.train.tolist()
    assert str(tmp_path) not in (moved / "data.json").read_text()
    assert not list((tmp_path / "sub").iterdir())


def test_second_prepare_reads_nothing(corpus, tokenizer, monkeypatch):
    first = prepare(corpus, tokenizer)
    monkeypatch.setattr(prepare_module, "documents", None)
    assert prepare(corpus, tokenizer).path == first.path


def test_changed_source_tokenizer_or_setting_prepares_anew(corpus, tokenizer):
    paths = {prepare(corpus, spec).path for spec in (tokenizer, "train:300", "train:310")}
    paths.add(prepare(corpus, tokenizer, max_tokens=50).path)
    with Path(corpus).open("a") as file:
        file.write('{"text": "One more."}\n')
    paths.add(prepare(corpus, tokenizer).path)
    assert len(paths) == 5


def test_find_prepared_looks_in_the_cache(corpus, tokenizer, cache):
    assert find_prepared("0" * 16) is None
    data = prepare(corpus, tokenizer)
    (cache / "data" / "a-damaged").mkdir()
    (cache / "data" / "a-damaged" / "data.json").write_text("{")
    assert find_prepared(data.fingerprint) == data.path
    assert find_prepared("0" * 16) is None


def test_interrupted_prepare_leaves_nothing(corpus, tokenizer, tmp_path, cache):
    def interrupt(stage, done, total):
        if stage == "tokenize" and done:
            raise KeyboardInterrupt

    for out in (tmp_path / "out", None):
        with pytest.raises(KeyboardInterrupt):
            prepare(corpus, tokenizer, out=out, progress=interrupt)
    assert [path.name for path in tmp_path.iterdir()] == ["corpus.jsonl"]
    assert all(path.is_file() for path in (cache / "data").iterdir())


def test_leftovers_of_a_killed_prepare_are_removed(corpus, tokenizer, cache):
    path = prepare(corpus, tokenizer).path
    (path / "train.bin").unlink()
    left = cache / "data" / f".{path.name}.abc"
    left.mkdir()
    assert len(prepare(corpus, tokenizer).train)
    assert not left.exists()


def test_two_preparing_the_same_do_it_once(corpus, tokenizer, monkeypatch):
    written = []
    write = prepare_module._write
    monkeypatch.setattr(
        prepare_module, "_write", lambda *args: written.append(args) or write(*args)
    )
    with ThreadPoolExecutor(2) as pool:
        one, two = pool.map(lambda _: prepare(corpus, tokenizer), range(2))
    assert one.path == two.path
    assert len(written) == 1


def test_out_must_be_new_or_empty(corpus, tokenizer, tmp_path):
    (tmp_path / "empty").mkdir()
    prepare(corpus, tokenizer, out=tmp_path / "empty")
    for taken in (tmp_path / "empty", Path(corpus)):
        with pytest.raises(UserError, match="exists already"):
            prepare(corpus, tokenizer, out=taken)


def test_out_that_cannot_be_written_is_refused(corpus, tokenizer):
    with pytest.raises(UserError, match=r"Cannot write to .*--out"):
        prepare(corpus, tokenizer, out=Path(corpus) / "inside-a-file")


def test_full_disk_is_no_fault_of_the_user(corpus, tokenizer, tmp_path, monkeypatch):
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full, a Linux device on which each write fails")
    open_file = Path.open
    monkeypatch.setattr(
        Path,
        "open",
        lambda self, *args, **options: open_file(
            Path("/dev/full") if self.name == "train.bin" else self, *args, **options
        ),
    )
    with pytest.raises(RunError, match="disk is full"):
        prepare(corpus, tokenizer, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def damage_json(folder):
    (folder / "data.json").write_text("{")


def damage_fields(folder):
    (folder / "data.json").write_text('{"format": 1}')


def damage_list(folder):
    (folder / "data.json").write_text("[]")


def damage_size(folder):
    with (folder / "train.bin").open("ab") as file:
        file.write(b"\0\0")


def damage_missing(folder):
    (folder / "test.bin").unlink()


def damage_tokenizer(folder):
    train_tokenizer(300, ["quite other words " * 9]).save(str(folder / "tokenizer.json"))


def damage_version(folder):
    info = json.loads((folder / "data.json").read_text())
    (folder / "data.json").write_text(json.dumps(info | {"format": 99}))


@pytest.mark.parametrize(
    "damage",
    [
        damage_json,
        damage_fields,
        damage_list,
        damage_size,
        damage_missing,
        damage_tokenizer,
        damage_version,
    ],
)
def test_damaged_folder_is_refused_and_in_the_cache_made_again(corpus, tokenizer, tmp_path, damage):
    prepare(corpus, tokenizer, out=tmp_path / "out")
    damage(tmp_path / "out")
    with pytest.raises(UserError, match=r"'out'.*prepare it again"):
        prepare(str(tmp_path / "out"), None)
    cached = prepare(corpus, tokenizer)
    damage(cached.path)
    assert prepare(corpus, tokenizer).fingerprint == cached.fingerprint


def test_folder_that_is_not_prepared_is_refused(tmp_path):
    with pytest.raises(UserError, match="prepare it again"):
        open_prepared(tmp_path)


def test_prepared_folder_keeps_its_tokenizer(corpus, tokenizer, tmp_path):
    prepare(corpus, tokenizer, out=tmp_path / "out")
    train_tokenizer(300, ["quite other words " * 9]).save(str(tmp_path / "tokenizer.json"))
    for other in (str(tmp_path / "tokenizer.json"), "train:300"):
        with pytest.raises(UserError, match="another tokenizer"):
            prepare(str(tmp_path / "out"), other)


def test_raw_source_needs_a_tokenizer(corpus):
    with pytest.raises(UserError, match="name a tokenizer"):
        prepare(corpus, None)


@pytest.mark.parametrize("max_tokens", [0, -1])
def test_max_tokens_must_be_positive(corpus, tokenizer, max_tokens):
    with pytest.raises(UserError, match="at least 1"):
        prepare(corpus, tokenizer, max_tokens=max_tokens)


def test_prepared_data_is_read_without_datasets_and_pyarrow(corpus, tokenizer, tmp_path):
    data = prepare(corpus, tokenizer, out=tmp_path / "out")
    script = (
        "import sys; sys.modules.update(datasets=None, pyarrow=None, torch=None)\n"
        "from smollm2.data import batch, open_prepared\n"
        "from pathlib import Path\n"
        "data = open_prepared(Path(sys.argv[1]))\n"
        "print(data.fingerprint, batch(data.train, data.fingerprint, 0, 0, 2, 8)[0].shape)"
    )
    output = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "out")],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert output == f"{data.fingerprint} (2, 8)\n"


def test_cache_follows_the_environment(monkeypatch, tmp_path):
    from smollm2.data import cache_dir

    assert cache_dir() == Path(os.environ["SMOLCTL_CACHE"])
    monkeypatch.delenv("SMOLCTL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "smolctl"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert cache_dir() == tmp_path / ".cache" / "smolctl"


def test_real_novels_are_prepared_whole_with_the_published_tokenizer():
    if not os.environ.get("SMOLCTL_DATA"):
        pytest.skip("SMOLCTL_DATA is not set: no novels and no published tokenizer")
    root = Path(os.environ["SMOLCTL_DATA"])
    data = prepare(
        str(root / "corpus" / "novels.jsonl.gz"), str(root / "tokenizer"), max_tokens=200_000
    )
    assert len(data.train) == 200_000
    assert data.vocab_size == 49152
    for split in ("train", "validation"):
        assert 3.5 < data.n_bytes[split] / len(getattr(data, split)) < 5
