"""The documents of a file, or of a stretch of it: plain, JSONL or Parquet, compressed or not."""

import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, BinaryIO, Literal, Protocol, cast

from smollm2.data.corpus_files import EXPECTED, file_format
from smollm2.data.lines import numbered_lines, skip_line
from smollm2.errors import UserError, first_few

TEXT_STRETCH = 64 * 2**20  # bytes; a longer text file is read as several documents of this size
ROWS, ROWS_BYTES = 256, 16 * 2**20  # of a Parquet file, read at a time
LONGEST_ROW = 64 * 2**20  # bytes


class Readable(Protocol):
    """A file here, which is a `Path`, or elsewhere."""

    @property
    def name(self) -> str: ...

    def open(self, mode: Literal["rb"]) -> BinaryIO: ...


@dataclass(frozen=True)
class FilePart:
    """A file, or of one that can be cut the records that begin from byte `start` to before `end`
    (None: its end)."""

    file: Readable
    start: int = 0
    end: int | None = None

    @property
    def name(self) -> str:
        """What messages call it; lines are counted from there."""
        return self.file.name + (f" from byte {self.start:,}" if self.start else "")

    @property
    def suffix(self) -> str:
        return PurePath(self.file.name).suffix.lower()


def part_documents(parts: Iterable[FilePart]) -> Iterator[str]:
    """The documents of each part.

    Raises:
        UserError: from the iterator, if a file cannot be read, or has a broken record.
    """
    return (text for part in parts for text in _documents(part))


def sliced(files: Sequence[tuple[Readable, int]], n: int) -> list[list[FilePart]]:
    """Files with their sizes in bytes, laid end to end and cut into `n` slices of equal size. Plain
    JSONL is cut between records. Another file is in the slice in which it begins.

    Raises:
        UserError: there are fewer files than slices, and none can be cut.
    """
    if len(files) < n and not any(_can_be_cut(file) for file, _ in files):
        raise UserError(
            f"The source has {len(files):,} files that can only be read whole, too few for "
            f"`shards={n}`: expected at most {len(files):,}, or plain .jsonl, which can be cut."
        )
    total = sum(size for _, size in files)
    cuts = [total * number // n for number in range(n + 1)]
    slices: list[list[FilePart]] = [[] for _ in range(n)]
    begin = 0
    for file, size in files:
        for parts, low, high in zip(slices, cuts[:-1], cuts[1:], strict=True):
            first, last = max(low, begin), min(high, begin + size)
            if first < last and _can_be_cut(file):
                parts.append(FilePart(file, first - begin, last - begin))
            elif first < last and first == begin:
                parts.append(FilePart(file))
        begin += size
    return slices


def _can_be_cut(file: Readable) -> bool:
    return PurePath(file.name).suffix.lower() == ".jsonl"


def _documents(part: FilePart) -> Iterator[str]:
    readers = {".jsonl": _jsonl_file, ".parquet": _parquet_file}
    try:
        yield from readers.get(file_format(PurePath(part.file.name)) or "", _text_file)(part)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(
            f"Cannot read {part.file.name!r} ({error}): expected a whole, readable file. Fetch or "
            "compress it again."
        ) from error


@contextmanager
def _opened(part: FilePart) -> Iterator[BinaryIO]:
    """The content of a file, decompressed."""
    with part.file.open("rb") as raw:
        if part.suffix == ".gz":
            with gzip.open(raw) as file:
                yield cast(BinaryIO, file)
        elif part.suffix == ".zst":
            stream = _pyarrow(part).input_stream(raw, compression="zstd")
            with io.BufferedReader(stream) as file:
                yield file
        else:
            yield raw


def _text_file(part: FilePart) -> Iterator[str]:
    """The whole file, or stretches of 64 MB, each cut after whitespace."""
    rest, line = b"", 1
    with _opened(part) as file:
        while data := rest + file.read(TEXT_STRETCH - len(rest)):
            end = _stretch_end(data) if len(data) == TEXT_STRETCH else len(data)
            yield _decoded(data[:end], part, line)
            rest, line = data[end:], line + data.count(b"\n", 0, end)


def _stretch_end(data: bytes) -> int:
    """Where to cut: after the last whitespace, else before the last UTF-8 character."""
    end = max(data.rfind(space) for space in (b" ", b"\n", b"\t")) + 1
    if end == 0:
        end = len(data) - 1
        while end > 1 and data[end] & 0xC0 == 0x80:
            end -= 1
    return end


def _decoded(data: bytes, part: FilePart, line: int) -> str:
    """`data`, which starts on line `line` of `part`, as text."""
    if b"\0" in data:
        line += data.count(b"\n", 0, data.index(b"\0"))
        raise UserError(f"{part.name!r} is a binary file (a zero byte on line {line}): {EXPECTED}.")
    try:
        return data.decode("utf-8-sig" if line == 1 and not part.start else "utf-8")
    except UnicodeDecodeError as error:
        line += data.count(b"\n", 0, error.start)
        raise _not_utf8(part, f"line {line}") from error


def _not_utf8(part: FilePart, where: str) -> UserError:
    return UserError(
        f"{part.name!r} is not UTF-8 text ({where}): convert it first, for example with "
        "`iconv -f latin1 -t utf-8`."
    )


def _jsonl_file(part: FilePart) -> Iterator[str]:
    with _opened(part) as file:
        if part.start:
            file.seek(part.start - 1)
            skip_line(file)  # of which the byte before is a part, or the end
        for number, line in numbered_lines(file, part.name, part.end):
            text = _decoded(line, part, number)
            if number > 1 or text.strip():  # the first line may be a byte order mark alone
                yield _json_text(text, f"{part.name!r}, line {number}")


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


def _parquet_file(part: FilePart) -> Iterator[str]:
    pyarrow = _pyarrow(part)
    import pyarrow.parquet as parquet

    try:
        with part.file.open("rb") as raw:
            source = part.file if isinstance(part.file, Path) else raw  # Arrow's own is faster
            metadata = parquet.read_metadata(source)
            _require_text_column(part, metadata.schema.to_arrow_schema())
            # A buffer streams a column instead of reading a whole row group; a dictionary is not
            # expanded, since each of its entries may stand in many rows.
            options = {"metadata": metadata, "buffer_size": 2**20, "read_dictionary": ["text"]}
            with parquet.ParquetFile(source, **options) as file:
                number = 0
                for rows in file.iter_batches(_batch_rows(part, metadata), columns=["text"]):
                    for value in rows.column(0):
                        number += 1
                        yield _cell_text(value, part, number)
    except pyarrow.ArrowException as error:
        raise UserError(
            f"{part.name!r} is not a readable Parquet file ({error}); fetch it again."
        ) from error


def _require_text_column(part: FilePart, schema: Any) -> None:
    """Raise `UserError` unless a schema of Parquet has one column `text`, of strings or bytes."""
    import pyarrow.types as types

    columns = [field.type for field in schema if field.name == "text"]
    kinds = [kind.value_type if types.is_dictionary(kind) else kind for kind in columns]
    is_text = (types.is_string, types.is_large_string, types.is_string_view)
    is_bytes = (types.is_binary, types.is_large_binary, types.is_binary_view)
    if len(kinds) != 1 or not any(check(kinds[0]) for check in (*is_text, *is_bytes)):
        raise UserError(
            f"{part.name!r}: expected one string column `text`, found the columns "
            f"{first_few(schema.names)}. Rename the column that holds the text."
        )


def _batch_rows(part: FilePart, metadata: Any) -> int:
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
            f"{part.name!r} has rows of {longest // 2**20:,} MiB: expected at most "
            f"{LONGEST_ROW // 2**20} MiB per row. Split long documents into several rows."
        )
    return max(1, min(ROWS, ROWS_BYTES // longest))


def _cell_text(value: Any, part: FilePart, number: int) -> str:
    """The text in row `number`, empty for a null."""
    value = getattr(value, "value", value)  # of a dictionary's scalar, the entry that it refers to
    if not value.is_valid:
        return ""
    try:
        return str(value.as_buffer().to_pybytes(), "utf-8")
    except UnicodeDecodeError as error:
        raise _not_utf8(part, f"row {number}") from error


def _pyarrow(part: FilePart) -> Any:
    try:
        import pyarrow
    except ImportError as error:
        raise UserError(
            f"Reading {part.name!r} needs pyarrow: `pip install datasets`, or use .jsonl.gz."
        ) from error
    return pyarrow
