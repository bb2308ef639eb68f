"""The recorded answers to the questions of a task, read back as arrays."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from smollm2.errors import UserError
from smollm2.evaluation.answers import Answers, ItemScore
from smollm2.evaluation.score_file import DAMAGED, ScoreFile
from smollm2.evaluation.tasks import items_fingerprint
from smollm2.runs.tables import TableFolder

if TYPE_CHECKING:
    import pyarrow as pa

WHOLE = ("item", "gold")  # columns of whole numbers
NO_ROWS = b"item,question,gold,log_likelihoods,characters,n_bytes\n"
# The columns with a number for each choice, and what stands for the choices that a question lacks.
PER_CHOICE = {"log_likelihoods": -np.inf, "characters": 0.0, "n_bytes": 0.0}


def recorded_answers(tables: TableFolder, name: str, n: int, fingerprint: str) -> Answers:
    """The answers to the first `n` questions behind a row of eval.csv.

    Args:
        name, fingerprint: the row's `items` and `fingerprint`.

    Raises:
        UserError: they are missing, damaged, or of other questions.
    """
    file = ScoreFile(tables.path / "items" / name, ItemScore)
    try:
        questions, answers = answers_in(file.contents(), n)
    except DAMAGED as error:
        raise file.damaged(error) from None
    if items_fingerprint(questions) != fingerprint:
        raise UserError(
            f"items/{name} of run {tables.name!r} lacks the {n} questions behind eval.csv; "
            "score them again with smolctl eval."
        )
    return answers


def answers_in(contents: Iterable[bytes], n: int) -> tuple[list[str], Answers]:
    """The fingerprints of the questions numbered below `n`, and the answers to them, in order.

    Args:
        contents: of the files of scores. What a later one has of a question replaces the earlier.

    Raises:
        ValueError, KeyError: they are no such files; or a question has different numbers of choices
            in two columns, a log-likelihood that is not finite, or a right answer that is none of
            the choices or has no bytes.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    files = [rows_in(content) for content in contents if content]
    table = pa.concat_tables(files or [rows_in(NO_ROWS)])
    numbers = table["item"].to_numpy()
    items, from_last = np.unique(numbers[::-1], return_index=True)
    table = table.take((len(numbers) - 1 - from_last)[items < n]).combine_chunks()
    gold = table["gold"].to_numpy()
    cells = {name: pc.split_pattern(table[name], " ").combine_chunks() for name in PER_CHOICE}
    counts, *others = (pc.list_value_length(cells[name]).to_numpy() for name in PER_CHOICE)
    if not all(np.array_equal(counts, other) for other in others):
        raise ValueError("a question has different numbers of choices in two columns")
    if not np.all((gold >= 0) & (gold < counts)):
        raise ValueError("a right answer is none of the choices")
    is_choice = np.arange(counts.max(initial=1)) < counts[:, None]
    columns = {}
    for name, missing in PER_CHOICE.items():
        columns[name] = np.full(is_choice.shape, missing)
        columns[name][is_choice] = cells[name].flatten().cast(pa.float64()).to_numpy()
    if not np.isfinite(columns["log_likelihoods"][is_choice]).all():
        raise ValueError("a log-likelihood is not finite")
    if not np.all(columns["n_bytes"][np.arange(len(gold)), gold] > 0):
        raise ValueError("a right answer has no bytes")
    return table["question"].to_pylist(), Answers(gold, **columns)


def rows_in(content: bytes) -> "pa.Table":
    """The rows of a file of scores, of which only those columns are read that `NO_ROWS` has."""
    import pyarrow as pa
    from pyarrow import csv

    columns = NO_ROWS.decode().strip().split(",")
    types = dict.fromkeys(columns, pa.string()) | dict.fromkeys(WHOLE, pa.int64())
    return csv.read_csv(
        pa.BufferReader(content),
        csv.ReadOptions(use_threads=False, block_size=len(content) + 1),
        convert_options=csv.ConvertOptions(
            column_types=types, include_columns=columns, null_values=[]
        ),
    )
