"""Columns of Parquet: texts of any type of string or bytes, or a sentence."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from smollm2.data import documents
from smollm2.errors import UserError

TEXTS = ["one", "zwölf Bücher 猫", "one"]
STRINGS = [pa.string(), pa.large_string(), pa.string_view()]
BYTES = [pa.binary(), pa.large_binary(), pa.binary_view()]


def column(kind: pa.DataType, texts: list[str | bytes]) -> pa.Array:
    encoded = kind in BYTES
    values = [t.encode() if encoded and isinstance(t, str) else t for t in texts]
    return pa.array([*values, None], type=kind)


@pytest.mark.parametrize("kind", [*STRINGS, *BYTES], ids=str)
@pytest.mark.parametrize("options", [{}, {"use_dictionary": False}, {"store_schema": False}])
def test_each_type_of_text_is_read(tmp_path, kind, options):
    path = tmp_path / "a.parquet"
    table = pa.table({"id": [1, 2, 3, 4], "text": column(kind, TEXTS)})
    pq.write_table(table, path, **options)
    assert list(documents(str(path))) == TEXTS


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.binary(), pa.large_binary()], ids=str
)
def test_a_dictionary_is_read(tmp_path, kind):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": column(kind, TEXTS).dictionary_encode()}), path)
    assert list(documents(str(path))) == TEXTS


def test_text_that_is_not_utf8_is_refused_naming_its_row(tmp_path):
    latin = pa.array([b"plain"] * 300 + [b"caf\xe9"], type=pa.binary())
    for values in (latin, latin.view(pa.string())):
        pq.write_table(pa.table({"text": values}), tmp_path / "a.parquet")
        with pytest.raises(UserError, match=r"'a.parquet' is not UTF-8 text \(row 301\)"):
            list(documents(str(tmp_path / "a.parquet")))


NO_TEXT = {
    "another name": (pa.table({"body": ["a"]}), "columns body"),
    "numbers": (pa.table({"text": [1]}), "columns text"),
    "a list": (pa.table({"text": [["a"]]}), "columns text"),
    "a record": (pa.table({"text": [{"text": "a"}]}), "columns text"),
    "two": (pa.Table.from_arrays([pa.array(["a"])] * 2, ["text"] * 2), "columns text, text"),
    "nulls": (pa.table({"text": pa.nulls(3)}), "columns text"),
}


@pytest.mark.parametrize(("table", "message"), NO_TEXT.values(), ids=NO_TEXT)
def test_parquet_without_one_column_of_text_is_refused(tmp_path, table, message):
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(UserError, match=f"'a.parquet': expected one string column.*{message}"):
        list(documents(str(tmp_path / "a.parquet")))


def test_rows_that_are_too_long_are_refused_before_they_are_read(tmp_path):
    pq.write_table(
        pa.table({"text": ["x" * 70 * 2**20]}), tmp_path / "a.parquet", compression="zstd"
    )
    with pytest.raises(UserError, match="rows of 70 MiB"):
        list(documents(str(tmp_path / "a.parquet")))
