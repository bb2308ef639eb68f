"""Text in a file, or in the files of a folder: plain, JSONL or Parquet, compressed or not."""

import gzip
import io
import json
import zlib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, BinaryIO, cast

from smollm2.data.corpus_files import EXPECTED, corpus_files, file_format
from smollm2.data.corpus_kind import CorpusKind
from smollm2.data.lines import numbered_lines
from smollm2.errors import UserError, first_few

TEXT_STRETCH = 64 * 2**20  # bytes; a longer text file is read as several documents of this size
ROWS, ROWS_BYTES = 256, 16 * 2**20  # of a Parquet file, read at a time
LONGEST_ROW = 64 * 2**20  # bytes


def file_documents(source: str) -> Iterator[str]:
    """The documents of each file."""
    return (text for path in corpus_files(source).paths for text in _file_documents(path))


def file_identity(source: str) -> str:
    """The paths, sizes and times of the files."""
    stats = [(str(path.resolve()), path.stat()) for path in corpus_files(source).paths]
    return json.dumps([(path, stat.st_size, stat.st_mtime_ns) for path, stat in stats])


def files_not_read(source: str) -> str | None:
    """What of a folder is not read."""
    return corpus_files(source).not_read


def _file_documents(path: Path) -> Iterator[str]:
    readers = {".jsonl": _jsonl_file, ".parquet": _parquet_file}
    try:
        yield from readers.get(file_format(path) or "", _text_file)(path)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(
            f"Cannot read {path.name!r} ({error}): expected a whole, readable file. Fetch or "
            "compress it again."
        ) from error


def _open(path: Path) -> BinaryIO:
    if path.suffix.lower() == ".gz":
        return cast(BinaryIO, gzip.open(path))
    if path.suffix.lower() == ".zst":
        pyarrow = _pyarrow(path)
        return io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"))
    return path.open("rb")


def _text_file(path: Path) -> Iterator[str]:
    """The whole file, or stretches of 64 MB, each cut after whitespace."""
    rest, line = b"", 1
    with closing(_open(path)) as file:
        while data := rest + file.read(TEXT_STRETCH - len(rest)):
            end = _stretch_end(data) if len(data) == TEXT_STRETCH else len(data)
            yield _decoded(data[:end], path, line)
            rest, line = data[end:], line + data.count(b"\n", 0, end)


def _stretch_end(data: bytes) -> int:
    """Where to cut: after the last whitespace, else before the last UTF-8 character."""
    end = max(data.rfind(space) for space in (b" ", b"\n", b"\t")) + 1
    if end == 0:
        end = len(data) - 1
        while end > 1 and data[end] & 0xC0 == 0x80:
            end -= 1
    return end


def _decoded(data: bytes, path: Path, line: int) -> str:
    """`data`, which starts on line `line` of `path`, as text."""
    if b"\0" in data:
        line += data.count(b"\n", 0, data.index(b"\0"))
        raise UserError(f"{path.name!r} is a binary file (a zero byte on line {line}): {EXPECTED}.")
    try:
        return data.decode("utf-8-sig" if line == 1 else "utf-8")
    except UnicodeDecodeError as error:
        line += data.count(b"\n", 0, error.start)
        raise _not_utf8(path, f"line {line}") from error


def _not_utf8(path: Path, where: str) -> UserError:
    return UserError(
        f"{path.name!r} is not UTF-8 text ({where}): convert it first, for example with "
        "`iconv -f latin1 -t utf-8`."
    )


def _jsonl_file(path: Path) -> Iterator[str]:
    with closing(_open(path)) as file:
        for number, line in numbered_lines(file, path.name):
            text = _decoded(line, path, number)
            if number > 1 or text.strip():  # the first line may be a byte order mark alone
                yield _json_text(text, f"{path.name!r}, line {number}")


def _json_text(line: str, where: str) -> str:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f'{where}: broken JSON ({error}); expected one object per line, as {{"text": "..."}}.'
        ) from error
    text = record.get("text") if isinstance(record, dict) else None
    if not isinstance(text, str):
        fields = first_few(record) if isinstance(record, dict) else type(record).__name__
        raise UserError(
            f"{where}: expected an object with a string in the field `text`, found "
            f"{fields or 'no field'}. Rename the field that holds the text."
        )
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"{where}: `text` holds half of a surrogate pair ({error.object[error.start]!r}), "
                "which is not a character; remove it."
            ) from error
    return text


def _parquet_file(path: Path) -> Iterator[str]:
    pyarrow = _pyarrow(path)
    import pyarrow.parquet as parquet

    try:
        metadata = parquet.read_metadata(path)
        _require_text_column(path, metadata.schema.to_arrow_schema())
        # A buffer streams a column instead of reading a whole row group; a dictionary is not
        # expanded, since each of its entries may stand in many rows.
        options = {"metadata": metadata, "buffer_size": 2**20, "read_dictionary": ["text"]}
        with parquet.ParquetFile(path, **options) as file:
            number = 0
            for rows in file.iter_batches(_batch_rows(path, metadata), columns=["text"]):
                for value in rows.column(0):
                    number += 1
                    yield _cell_text(value, path, number)
    except pyarrow.ArrowException as error:
        raise UserError(
            f"{path.name!r} is not a readable Parquet file ({error}); fetch it again."
        ) from error


def _require_text_column(path: Path, schema: Any) -> None:
    """Raise `UserError` unless a schema of Parquet has one column `text`, of strings or bytes."""
    import pyarrow.types as types

    columns = [field.type for field in schema if field.name == "text"]
    kinds = [kind.value_type if types.is_dictionary(kind) else kind for kind in columns]
    is_text = (types.is_string, types.is_large_string, types.is_string_view)
    is_bytes = (types.is_binary, types.is_large_binary, types.is_binary_view)
    if len(kinds) != 1 or not any(check(kinds[0]) for check in (*is_text, *is_bytes)):
        raise UserError(
            f"{path.name!r}: expected one string column `text`, found the columns "
            f"{first_few(schema.names)}. Rename the column that holds the text."
        )


def _batch_rows(path: Path, metadata: Any) -> int:
    """How many rows to read at a time, so that those of average length take `ROWS_BYTES`.

    Raises:
        UserError: a row group's average row is longer than `LONGEST_ROW`.
    """
    longest = 1
    for group in range(metadata.num_row_groups):
        content = metadata.row_group(group)
        for number in range(content.num_columns):
            column = content.column(number)
            if column.path_in_schema == "text" and column.num_values:
                longest = max(longest, column.total_uncompressed_size // column.num_values)
    if longest > LONGEST_ROW:
        raise UserError(
            f"{path.name!r} has rows of {longest // 2**20:,} MiB: expected at most "
            f"{LONGEST_ROW // 2**20} MiB per row. Split long documents into several rows."
        )
    return max(1, min(ROWS, ROWS_BYTES // longest))


def _cell_text(value: Any, path: Path, number: int) -> str:
    """The text in row `number`, empty for a null."""
    value = getattr(value, "value", value)  # of a dictionary's scalar, the entry that it refers to
    if not value.is_valid:
        return ""
    try:
        return str(value.as_buffer().to_pybytes(), "utf-8")
    except UnicodeDecodeError as error:
        raise _not_utf8(path, f"row {number}") from error


def _pyarrow(path: Path) -> Any:
    try:
        import pyarrow
    except ImportError as error:
        raise UserError(
            f"Reading {path.name!r} needs pyarrow: `pip install datasets`, or use .jsonl.gz."
        ) from error
    return pyarrow


KIND = CorpusKind(
    prefix="",
    spelling="a file or folder",
    read=file_documents,
    identity=file_identity,
    not_read=files_not_read,
)
