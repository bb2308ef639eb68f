"""Files at addresses: the documents, slices and tokens of the same files here, or a sentence."""

import gzip
import sys
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.stories import stories, write_jsonl

from smollm2.data import documents, prepare, source_name
from smollm2.data.corpora import document_slices, without_secrets
from smollm2.errors import UserError
from smollm2.protocol.run_config import RunConfig

pytestmark = pytest.mark.usefixtures("fresh_cache")


@pytest.fixture
def folder(tmp_path):
    """A folder with each kind of file, and some that are not read."""
    texts = stories(120)
    made = tmp_path / "made"
    made.mkdir()
    lines = Path(write_jsonl(made / "a.jsonl", texts[:40])).read_bytes()
    (made / "b.jsonl.gz").write_bytes(gzip.compress(lines))
    with pa.output_stream(str(made / "c.jsonl.zst"), compression="zstd") as file:
        file.write(lines)
    (made / "deep").mkdir()
    pq.write_table(pa.table({"text": texts[40:]}), made / "deep" / "d.parquet")
    (made / "deep" / "e.jsonl").write_text("")
    (made / ".hidden").mkdir()
    (made / ".hidden" / "f.jsonl").write_text("broken")
    (made / "README.md").write_text("About the data.")
    (made / "picture.png").write_text("no text")
    return made


@pytest.fixture(params=["file", "memory"])
def address(request, folder):
    """The address of that folder."""
    if request.param == "file":
        yield folder.as_uri()
        return
    system = fsspec.filesystem("memory")
    system.put(str(folder), "/made", recursive=True)
    yield "memory://made"
    system.rm("/made", recursive=True)


def test_an_address_has_the_documents_of_its_files(address, folder):
    assert list(documents(address)) == list(documents(str(folder)))
    name = "deep/d.parquet"
    assert list(documents(f"{address}/{name}")) == list(documents(str(folder / name)))


def test_an_address_has_the_slices_of_its_files(address, folder):
    for n in (1, 3, 5):
        here, there = (
            [list(read()) for read in document_slices(source, n)]
            for source in (str(folder), address)
        )
        assert here == there
    lines = f"{address}/a.jsonl"
    found = [list(read()) for read in document_slices(lines, 3)]
    assert all(found)
    assert [text for part in found for text in part] == list(documents(lines))


def test_an_address_is_prepared_in_shards_to_the_tokens_of_its_files(
    address, folder, tokenizer, tmp_path
):
    here, there = (
        prepare(source, tokenizer, out=tmp_path / name, shards=3)
        for source, name in ((str(folder), "here"), (address, "there"))
    )
    assert here.fingerprint == there.fingerprint


def test_a_changed_file_is_prepared_again(tokenizer):
    system = fsspec.filesystem("memory")
    for texts in (stories(40), stories(50)):
        with system.open("/changed.jsonl", "w") as file:
            file.writelines(f'{{"text": "{text}"}}\n' for text in texts)
        data = prepare("memory://changed.jsonl", tokenizer)
        assert sum(data.documents.values()) == len(texts)
    assert data.source == "memory://changed.jsonl"


def test_no_path_and_no_password_is_kept(tmp_path):
    local = (tmp_path / "a.jsonl").as_uri()
    with_password = "ftp://me:secret@host/a.jsonl"
    for source, kept in ((local, "a.jsonl"), (with_password, "ftp://host/a.jsonl")):
        assert source_name(source) == kept
        assert RunConfig("pow2", data=source).without_paths().data == kept


def test_an_address_that_leads_nowhere_is_a_sentence(folder):
    for source in ("memory://no/such", f"{folder.as_uri()}/no.jsonl"):
        with pytest.raises(UserError, match=f"There is nothing at {source}"):
            documents(source)
    with pytest.raises(UserError, match=r"There is no text at .*picture\.png: expected \.txt"):
        documents(f"{folder.as_uri()}/picture.png")
    with pytest.raises(UserError, match=r"No protocol s4:// is known.*such as s3://"):
        documents("s4://bucket/a.jsonl")


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(UserError, match=r"Reading s3://bucket/a\.jsonl needs `pip install s3fs`"):
        documents("s3://bucket/a.jsonl")
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(UserError, match="needs `pip install fsspec`"):
        documents("s3://bucket/a.jsonl")


def test_what_cannot_be_reached_is_a_sentence(monkeypatch, address):
    class Unplugged(Exception):
        pass

    def refuse(*arguments, **options):
        raise Unplugged("no route to host")

    system, _ = fsspec.core.url_to_fs(address)
    sentence = r"Cannot read .* \(Unplugged: no route to host\)\. Check the address, the network"
    with monkeypatch.context() as patch:
        patch.setattr(type(system), "open", refuse)
        with pytest.raises(UserError, match=sentence):
            list(documents(address))
    with monkeypatch.context() as patch:
        patch.setattr(type(system), "info", refuse)
        with pytest.raises(UserError, match=sentence):
            documents(address)


@pytest.mark.parametrize(
    ("address", "kept"),
    [
        ("ftp://me:p@ss@host/a.jsonl", "ftp://host/a.jsonl"),
        ("https://host/a.jsonl?token=secret", "https://host/a.jsonl"),
        ("github://ORG:REPO@main/a.jsonl", "github://ORG:REPO@main/a.jsonl"),
        ("abfs://box@account.net/a.jsonl", "abfs://box@account.net/a.jsonl"),
        ("local:///home/me/a.jsonl", "a.jsonl"),
    ],
)
def test_a_request_keeps_no_secret_of_an_address(address, kept):
    assert without_secrets(address) == kept
