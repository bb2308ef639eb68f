"""The format of a pack: what is decoded is, byte for byte, what was encoded."""

import csv
import gzip
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smollm2.errors import UserError
from smollm2.files import gzipped
from smollm2.runs.pack_format import (
    MANIFEST,
    DamagedPack,
    from_pack,
    read_pack_manifest,
    sha256,
    to_pack,
)

cells = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
names = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,8}", fullmatch=True)


@st.composite
def tables(draw) -> str:
    """A CSV file as a run has them: a header of distinct columns, and rows of any text."""
    header = draw(st.lists(cells, min_size=1, max_size=4, unique=True))
    rows = draw(st.lists(st.lists(cells, min_size=len(header), max_size=len(header)), max_size=4))
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
)
documents = (
    st.dictionaries(st.text(max_size=4), json_values).map(lambda value: json.dumps(value, indent=2))
    | json_values.map(json.dumps)
    | cells
)


@st.composite
def studies(draw) -> dict[str, bytes]:
    """The files of up to three runs, whole and broken ones."""
    files = {}
    for run in draw(st.lists(names, min_size=1, max_size=3, unique=True)):
        files[f"{run}/run.json"] = draw(documents).encode()
        for table in ("val", "train", "eval", "quantized/int4/eval"):
            files[f"{run}/{table}.csv"] = draw(tables() | cells).encode()
        for item in draw(st.lists(names, max_size=2, unique=True)):
            files[f"{run}/items/{item}.csv.gz"] = gzipped(draw(tables() | cells).encode())
        files[f"{run}/tokenizer.json"] = draw(documents).encode()
    return files


@given(studies())
def test_every_file_of_every_run_comes_back_byte_for_byte(files):
    assert from_pack(to_pack(files)) == files


def numbers(step: int, loss: str) -> str:
    return f"step,loss\n{step},{loss}\n"


def study() -> dict[str, bytes]:
    """Two runs of one tokenizer; one of them has a quantized model."""
    manifest = {"protocol": {"data": {"tokenizer_fingerprint": "71c1416dbe7b3d39"}}}
    files = {}
    for run in ("a", "b"):
        files[f"{run}/run.json"] = (json.dumps(manifest, indent=2) + "\n").encode()
        files[f"{run}/tokenizer.json"] = b'{"model": 1}'
        files[f"{run}/val.csv"] = numbers(1, "1.50").encode()
        files[f"{run}/items/validation.csv.gz"] = gzipped(numbers(2, "0.10").encode())
    files["a/eval.csv"] = b"metric,value\nloss,1e-05\n"
    files["a/quantized/int4/eval.csv"] = b"value,metric\n2,loss\n"
    return files


def test_a_study_is_one_table_per_kind_with_the_run_in_a_column():
    pack = to_pack(study())
    assert set(pack) == {
        *("pack.json", "runs.jsonl", "val.csv", "eval.csv", "items.parquet"),
        "tokenizers/71c1416dbe7b3d39.json",
    }
    assert pack["val.csv"] == b"run,step,loss\na,1,1.50\nb,1,1.50\n"
    assert pack["eval.csv"] == (b"run,quantized,metric,value\na,,loss,1e-05\na,int4,loss,2\n")
    lines = [json.loads(line) for line in pack["runs.jsonl"].splitlines()]
    assert [line["path"] for line in lines] == ["a/run.json", "b/run.json"]
    assert lines[0]["content"]["protocol"]["data"]["tokenizer_fingerprint"] == "71c1416dbe7b3d39"


def test_the_parquet_tables_can_be_read_without_this_project():
    import pandas as pd

    items = pd.read_parquet(io.BytesIO(to_pack(study())["items.parquet"]))
    assert items.to_dict("list") == {
        "run": ["a", "b"],
        "file": ["validation", "validation"],
        "step": ["2", "2"],
        "loss": ["0.10", "0.10"],
    }


def test_tokenizers_that_share_a_name_but_not_their_bytes_are_both_kept():
    files = study() | {"b/tokenizer.json": b'{"model":1}'}
    assert len([name for name in to_pack(files) if name.startswith("tokenizers/")]) == 2
    assert from_pack(to_pack(files)) == files


def test_compressed_bytes_of_another_zlib_come_back_with_the_same_content():
    files = study() | {"a/items/validation.csv.gz": gzip.compress(b"step,loss\n2,0.10\n", 1)}
    content = from_pack(to_pack(files))["a/items/validation.csv.gz"]
    assert gzip.decompress(content) == b"step,loss\n2,0.10\n"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a/weights.bin", b"\xff\xfe", "neither a table nor text"),
        ("a/.hidden", b"", "not portable"),
        ("a/a\\b.txt", b"", "not portable"),
        ("a/items/x.csv.gz", b"no gzip", "is damaged"),
    ],
)
def test_what_cannot_be_packed_is_named(name, content, said):
    with pytest.raises(UserError, match=said) as error:
        to_pack(study() | {name: content})
    assert name in str(error.value).replace("\\\\", "\\")


def without(pack: dict[str, bytes], name: str) -> dict[str, bytes]:
    return {key: value for key, value in pack.items() if key != name}


@pytest.mark.parametrize("name", ["val.csv", "runs.jsonl", "items.parquet"])
def test_a_file_that_is_missing_or_altered_is_named(name):
    pack = to_pack(study())
    with pytest.raises(DamagedPack, match=f"has no {name}"):
        from_pack(without(pack, name))
    for altered in (pack[name][:-1], pack[name][:-2] + b"#\n", b""):
        with pytest.raises(DamagedPack, match=f"{name} is not what was written"):
            from_pack(pack | {name: altered})


def forged(**fields) -> dict[str, bytes]:
    """A pack whose pack.json says something else, and of whose files the checksums are right."""
    pack = to_pack(study())
    return pack | {MANIFEST: json.dumps(json.loads(pack[MANIFEST]) | fields).encode()}


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{}", b"null", b"[" * 100_000, b'{"format": 1}', b'{"format": 1e999}', b"\xff"],
)
def test_an_invalid_manifest_is_refused(content):
    with pytest.raises(DamagedPack):
        read_pack_manifest(content)


@pytest.mark.parametrize("version", [2, 10**400])
def test_a_later_version_is_reported_as_such(version):
    said = f"format {str(version)[:20]}, and this version reads up to 1"
    with pytest.raises(DamagedPack, match=said):
        from_pack(forged(format=version))


@pytest.mark.parametrize(
    "path", ["../x", "/x/y", "a/../../x", "a/.x", "a\\..\\x/y", "C:/x", "a//x"]
)
def test_no_path_of_a_pack_leads_outside(path):
    entry = {"sha256": sha256(b"")}
    with pytest.raises(DamagedPack):
        from_pack(forged(contents={path: entry}, runs=[path.partition("/")[0]]))
    with pytest.raises(DamagedPack):
        from_pack(forged(files={path: sha256(b"")}) | {path: b""})


@pytest.mark.parametrize(
    "fields",
    [
        {"contents": {"a/val.csv": {"sha256": "0" * 64, "header": 0}}, "runs": ["a"]},
        {"contents": {"a/val.csv": {"sha256": 5, "header": 7}}, "runs": ["a"]},
        {"contents": {"a/nothing.txt": {"sha256": ""}}, "runs": ["a"]},
        {"contents": {"a/tokenizer.json": {}}, "runs": ["a"]},
        {"contents": {"a/val.csv": []}, "runs": ["a"]},
        {"headers": {"val": [["step", "other"]]}},
        {"headers": {"nothing": []}},
        {"headers": 3},
        {"runs": ["a"]},
        {"runs": 7},
        {"files": {}},
        {"files": []},
    ],
)
def test_a_manifest_that_does_not_fit_its_files_is_refused(fields):
    with pytest.raises(DamagedPack, match="is damaged"):
        from_pack(forged(**fields))
