"""CSV tables of a folder: their columns, and the one way to add, replace and read rows."""

import csv
import io
import re
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smollm2.errors import UserError
from smollm2.files import append, replace_file
from smollm2.parse import decoded, read_file, why_not
from smollm2.runs.conditions import CONDITIONS, upgraded
from smollm2.runs.quantize_status import (
    CALIBRATION,
    FIDELITY,
    with_later_columns,
    with_status,
)

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import pyarrow as pa

    Columns = Mapping[str, "np.ndarray"]  # of a table, by name

TABLES: dict[str, tuple[str, ...]] = {
    "train": (
        "step", "tokens", "seconds", "loss", "lr", "grad_norm", "tokens_per_second", "mfu",
        "peak_memory_mb", "balance_loss", "expert_load_min", "expert_load_max",
    ),
    "val": (
        "step", "tokens", "flops", "seconds", "loss", "accuracy", "perplexity", "bits_per_byte",
    ),
    "experts": ("step", "layer", "expert", "load"),
    # n of total tokens or questions were scored; stderr is over clusters (documents or questions);
    # `items` names the file in items/ that holds the scores one by one.
    "eval": (
        "task", "metric", "value", "stderr", "n", "total", "clusters", "chance", *CONDITIONS,
        "fingerprint", "items",
    ),
    # Sums over the tokens of each document of the final test, numbered from the start of the split.
    "documents": ("document", "n_tokens", "nats", "hits", "text_nats", "n_bytes"),
    # One row per configuration; `bf16` is the model as it was trained. What was not measured is
    # empty, and `status` (`quantize_status.Status`) and `reason` say why. quantized_share is of all
    # parameters; kl is KL(bf16 || quantized) over tokens, p99 its 99th percentile; the loss_delta,
    # kl, agreement and their stderr are over `n` tokens of `clusters` validation documents, read in
    # windows of `context`; the ratios are to bf16 in the same run of the command.
    "quantize": (
        "name", "bits", "backend", "method", "group_size", "embedding_bits", "quantized_share",
        "skipped", "memory_bytes", "disk_bytes", "memory_bytes_without_embedding",
        "disk_bytes_without_embedding", "loss", "loss_delta", "loss_delta_stderr", *FIDELITY, "n",
        "clusters", "prefill_tokens_per_second", "decode_tokens_per_second", "prefill_ratio",
        "decode_ratio", "compiled_decode_tokens_per_second", "compiled_decode_ratio",
        *CALIBRATION, "dtype", "device", "device_name", "threads", "fingerprint", "status",
        "reason",
    ),
    # Of a study, not of a run: see `speed_table`.
    "speed": (
        "round", "position", "arm", "seconds", "tokens", "flops", "matmul_flops_per_second",
        "repeats", "device_name", "threads",
    ),
}  # fmt: skip


# The columns of words; the others hold numbers.
WORDS: dict[str, tuple[str, ...]] = {
    "eval": ("task", "metric", "suite", "split", "dtype", "device", "fingerprint", "items"),
    "quantize": (
        "name", "backend", "method", "skipped", *CALIBRATION, "dtype", "device", "device_name",
        "fingerprint", "status", "reason",
    ),
}  # fmt: skip
# The columns of counts, which are never empty.
COUNTS: dict[str, tuple[str, ...]] = {
    "train": ("step", "tokens"),
    "val": ("step", "tokens"),
    "experts": ("step", "layer", "expert"),
    "eval": ("n", "total", "clusters"),
    "documents": ("document", "n_tokens", "hits", "n_bytes"),
}
WHOLE = {"shots": "Int64", "context": "Int64"}  # held-out text has no shots
MOST_BYTES = 2**30  # of a table
MOST_KEPT = 4  # tables in memory: those of the run that is being read


class TableFolder:
    """The CSV tables in the folder `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def name(self) -> str:
        """What errors call the folder."""
        return self.path.resolve().name

    def append(self, table: str, row: dict[str, Any]) -> None:
        """Add one row; columns missing from `row` stay empty."""
        path, text = self.path / f"{table}.csv", io.StringIO()
        writer = csv.DictWriter(text, TABLES[table], restval="", lineterminator="\n")
        if not path.exists() or path.stat().st_size == 0:
            writer.writeheader()
        writer.writerow(row)
        append(path, text.getvalue())

    def replace(self, table: str, rows: list[dict[str, Any]]) -> None:
        """Replace the whole table. Unknown columns are dropped."""
        text = io.StringIO()
        writer = csv.DictWriter(
            text, TABLES[table], restval="", extrasaction="ignore", lineterminator="\n"
        )
        writer.writeheader()
        writer.writerows(rows)
        replace_file(self.path / f"{table}.csv", text.getvalue())

    def columns(self, table: str) -> "Columns":
        """A table of numbers and words, each column by its name; an empty cell is NaN, of words
        None. Columns that are not the table's are dropped. Not to be written to.

        Raises:
            UserError: the file is missing or cannot be read, lacks a column, has a line of another
                length or a cell of another type, ends in the middle of a line, or was written by no
                version of this package.
        """
        name, text = f"{self.name}/{table}.csv", self._text(table)
        if text is None:
            raise UserError(f"Run {self.name!r} has no {table}.csv.")
        if not text.endswith("\n"):
            raise UserError(f"{name} ends in the middle of a line.")
        return checked_columns(table, text, name)

    def table(self, table: str) -> "pd.DataFrame":
        """`columns` as a table of pandas, which takes longer."""
        import pandas as pd

        return pd.DataFrame(self.columns(table)).astype(WHOLE if table == "eval" else {})

    def rows(self, table: str) -> list[dict[str, Any]]:
        """Raw strings, for rewriting; no rows if there is no file. A last line that is half written
        is dropped. Use `table` for numbers.

        Raises:
            UserError: the file cannot be read, or was written by no version of this package.
        """
        text = self._text(table) or ""
        whole = text[: text.rfind("\n") + 1]  # the last line may be half written
        name = f"{self.name}/{table}.csv"
        try:
            return list(csv.DictReader(io.StringIO(current_text(table, whole, name))))
        except csv.Error as error:
            raise UserError(f"{name} cannot be read: {error}.") from None

    def _text(self, table: str) -> str | None:
        """The text of a table; None if there is no file.

        Raises:
            UserError: it cannot be read, or is no such text.
        """
        name = f"{self.name}/{table}.csv"
        try:
            text = decoded(read_file(self.path / f"{table}.csv", MOST_BYTES))
            header = header_of(text)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, csv.Error) as error:
            raise UserError(f"{name} cannot be read: {why_not(error)}.") from None
        if twice := next((one for one in header if header.count(one) > 1), None):
            raise UserError(f"{name} has two columns {twice!r}.")
        if "\0" in text:
            raise UserError(f"{name} has a line of another length.")
        return text


def header_of(text: str) -> list[str]:
    """The first line's cells."""
    return next(csv.reader(io.StringIO(text[: text.find("\n") + 1], newline="")), [])


@lru_cache(maxsize=MOST_KEPT)  # eval.csv is read by each who needs some of its rows
def checked_columns(table: str, text: str, name: str) -> "Columns":
    """See `TableFolder.columns`.

    Args:
        text: whole lines.
        name: what errors call the file.
    """
    import pyarrow
    from pyarrow import csv as arrow_csv

    words, counts = WORDS.get(table, ()), COUNTS.get(table, ())
    types = {column: pyarrow.float64() for column in TABLES[table]}
    whole = [*counts, *(WHOLE if table == "eval" else {})]
    types |= dict.fromkeys(words, pyarrow.string()) | dict.fromkeys(whole, pyarrow.int64())
    text = current_text(table, text, name)
    content = text.encode()
    try:
        found = arrow_csv.read_csv(
            pyarrow.BufferReader(content),
            # One block and one thread: tables are small, and many.
            arrow_csv.ReadOptions(use_threads=False, block_size=len(content) + 1),
            arrow_csv.ParseOptions(newlines_in_values=True, ignore_empty_lines=False),
            arrow_csv.ConvertOptions(
                column_types=types,
                include_columns=TABLES[table],
                null_values=[""],
                strings_can_be_null=True,
            ),
        )
    except KeyError:
        missing = next(column for column in TABLES[table] if column not in header_of(text))
        raise UserError(f"{name} lacks the column {missing!r}.") from None
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"{name} {problem_of(str(error), header_of(text), counts)}") from None
    if found.column(0).null_count:
        raise UserError(f"{name} has a line without a {TABLES[table][0]}.")
    columns = {column: array_of(found.column(column).combine_chunks()) for column in TABLES[table]}
    for column in counts:
        if found.column(column).null_count or columns[column].min(initial=0) < 0:
            raise UserError(f"{name} {not_a_count(column)}")
    return columns


def array_of(column: "pa.Array") -> "np.ndarray":
    """The cells of a column of words, int64 or float64, not to be written to; of an empty cell NaN,
    or None among words. `to_numpy` gives the same,
    and loads pandas, which takes 0.2 s."""
    import numpy as np
    import pyarrow as pa

    if pa.types.is_string(column.type):
        return np.array(column.to_pylist(), dtype=object)
    dtype = np.int64 if pa.types.is_integer(column.type) else np.float64
    if not len(column):  # without buffers
        return np.empty(0, dtype)
    is_there, cells = column.buffers()
    start, end = column.offset, column.offset + len(column)
    found = np.frombuffer(cells, dtype, count=end)[start:]
    if column.null_count:
        bits = np.unpackbits(np.frombuffer(is_there, np.uint8), count=end, bitorder="little")
        found = np.where(bits[start:], found, np.nan)
    return found


BAD_CELL = re.compile(r"In CSV column #(\d+): ")


def problem_of(message: str, header: Sequence[str], counts: Collection[str]) -> str:
    """What is wrong with a table that Arrow does not read, after the file's name."""
    where = BAD_CELL.match(message)
    if not where or int(where[1]) >= len(header):
        is_length = "Expected" in message
        return "has a line of another length." if is_length else f"cannot be read: {message:.200}."
    column = header[int(where[1])]
    return not_a_count(column) if column in counts else f"has a {column} that is not a number."


def not_a_count(column: str) -> str:
    return f"has a cell in the column {column!r} that is not a count."


def current_text(table: str, text: str, name: str) -> str:
    """The text of a table in the columns of this version.

    Raises:
        UserError: it cannot be read, or was written by no version of this package.
    """
    if table == "eval":
        return upgraded(text, name)
    try:
        return with_later_columns(with_status(text)) if table == "quantize" else text
    except csv.Error as error:
        raise UserError(f"{name} cannot be read: {error}.") from None
