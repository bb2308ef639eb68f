"""Sources of text: each format gives its documents, and each bad input is refused in a sentence."""

import gzip
import json
import sys
from unittest.mock import MagicMock

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.stories import write_jsonl

from smollm2.data import documents, file_parts, kinds, prepare, source_name
from smollm2.data.corpora import CORPORA, register
from smollm2.data.corpus_kind import CorpusKind
from smollm2.data.kinds import stdlib_corpus
from smollm2.discovery import declared
from smollm2.errors import UserError
from smollm2.protocol.run_config import RunConfig


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


def test_byte_order_mark_is_not_text(tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeffone".encode())
    (tmp_path / "b.jsonl").write_bytes('\ufeff{"text": "two"}'.encode())
    assert list(documents(str(tmp_path))) == ["one", "two"]


@given(text=st.text("ab é猫\n", min_size=1).filter(str.strip), stretch=st.integers(4, 20))
def test_long_text_file_is_read_in_stretches_cut_at_whitespace(tmp_path_factory, text, stretch):
    path = tmp_path_factory.mktemp("long") / "long.txt"
    path.write_bytes(text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(file_parts, "TEXT_STRETCH", stretch)
        parts = list(file_parts.part_documents([file_parts.FilePart(path)]))
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
    assert not any(path.match("test/*") for path in stdlib_corpus.stdlib_files())


def test_python_without_sources_has_no_builtin_corpus(monkeypatch, tmp_path):
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path / "python311.zip"))
    with pytest.raises(UserError, match=r"without the sources.*`data`"):
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
    monkeypatch.setattr(file_parts, "TEXT_STRETCH", 16)
    (tmp_path / "a.txt").write_bytes(b"a line\n" * 20 + b"caf\xe9\n")
    with pytest.raises(UserError, match="line 21"):
        list(documents(str(tmp_path / "a.txt")))


def test_missing_source_is_refused_at_once_with_the_nearest_name(tmp_path):
    (tmp_path / "novels.txt").write_text("text")
    with pytest.raises(UserError, match=r"Did you mean 'novels.txt'"):
        documents(str(tmp_path / "novel.txt"))
    with pytest.raises(UserError, match="builtin is on every machine"):
        documents(str(tmp_path / "no" / "such" / "file.txt"))


def test_an_empty_source_is_not_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret.txt").write_text("not meant\n")
    with pytest.raises(UserError, match="There is no file or folder ''"):
        next(iter(documents("")))


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
    with pytest.raises(UserError, match=r"cannot be reached.*data=builtin"):
        next(documents(source))


def test_unknown_hub_data_set_is_refused(monkeypatch):
    from huggingface_hub.errors import RepositoryNotFoundError

    def unknown(*args, **options):
        raise RepositoryNotFoundError("404", response=MagicMock())

    monkeypatch.setattr("huggingface_hub.HfApi.repo_info", unknown)
    with pytest.raises(UserError, match=r"no public dataset 'no/such'.*data=builtin"):
        next(documents("hub:no/such"))


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
    with pytest.raises(UserError, match=r"\['a', 'b'\].*hub:ORG/NAME/CONFIG.*data=builtin"):
        next(documents("hub:some/set"))


def test_hub_data_set_without_text_is_refused(hub):
    hub[1].append({"question": "a", "answer": "b"})
    with pytest.raises(UserError, match="no text column `text`, only question, answer"):
        next(documents("hub:some/set"))


def test_a_kind_of_corpus_needs_one_file(monkeypatch, tmp_path):
    assert [kind.prefix for kind in declared(kinds.__name__, "KIND")] == list(CORPORA)
    (tmp_path / "zeros_corpus.py").write_text(
        "from smollm2.data.corpus_kind import CorpusKind\n"
        "KIND = CorpusKind('zeros', 'zeros', read=lambda source: iter(['0']), identity=str)\n"
    )
    monkeypatch.setattr(kinds, "__path__", [*kinds.__path__, str(tmp_path)])
    *known, zeros = declared(kinds.__name__, "KIND")
    monkeypatch.delitem(sys.modules, f"{kinds.__name__}.zeros_corpus")
    assert known == list(CORPORA.values())
    assert list(zeros.read("zeros")) == ["0"]


def test_a_registered_kind_of_corpus_is_prepared_and_named(monkeypatch, tokenizer, tmp_path):
    monkeypatch.setattr("smollm2.data.corpora.CORPORA", dict(CORPORA))
    read = []

    def count_documents(source):
        read.append(source)
        return (f"Number {n} of {source}." for n in range(int(source.removeprefix("count:"))))

    counts = CorpusKind("count:", "count:N", read=count_documents, identity=str)
    register(counts)
    assert list(documents("count:2")) == ["Number 0 of count:2.", "Number 1 of count:2."]
    data = prepare("count:40", tokenizer)
    assert data.source == "count:40"
    assert sum(data.documents.values()) == 40
    read.clear()
    assert prepare("count:40", tokenizer).fingerprint == data.fingerprint
    assert read == []  # from the cache
    assert RunConfig("pow2", data="count:a/b").without_paths().data == "count:a/b"
    with pytest.raises(UserError, match=r"hub:ORG/NAME\[/CONFIG\], builtin, count:N; "):
        documents("cuont:40")
    with pytest.raises(ValueError, match="already a kind of corpus 'count:'"):
        register(counts)
