"""The scores that two checkpoints have in common: the same windows of text, the same questions.

Two scores are alike where eval.csv of both has a row of the same text or questions that was made in
the same way. Of several such rows of one text or task the largest counts, of equals the one in
fp32. What lies behind a row, document by document or question by question, is in items/.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np

from smolctl.analysis.blocks import Numbers
from smolctl.analysis.task_rows import Row, task_scores
from smollm2.errors import UserError
from smollm2.evaluation.answer_file import recorded_answers
from smollm2.runs.conditions import SPREAD_TEXT, TEXT
from smollm2.runs.scored_texts import ScoredText, scored_texts
from smollm2.runs.tables import TableFolder

if TYPE_CHECKING:
    from smollm2.runs.run import Run

SPLIT = "test"  # of a text: what is compared


@dataclass(frozen=True)
class ScoredModel:
    """A model whose scores are recorded.

    Args:
        name: RUN or RUN+NAME, a target of the command line.
        run: the run that it comes from.
        tables: where its scores are: the run itself, or the folder of a quantized model.
    """

    name: str
    run: "Run"
    tables: TableFolder

    @property
    def is_quantized(self) -> bool:
        """Whether it is a quantized model of its run."""
        return self.tables.path.resolve() != self.run.path.resolve()

    @property
    def own_text(self) -> str | None:
        """The fingerprint of the text that it was trained on, if that was here."""
        data = self.run.protocol.data
        return data.fingerprint if data else None

    def text_name(self, fingerprint: str) -> str:
        """What the run calls a text."""
        data = self.run.protocol.data
        if data and data.fingerprint == fingerprint:
            return data.source
        text = scored_texts(self.run).get(fingerprint)
        return text.source if text else f"text {fingerprint}"


@dataclass(frozen=True)
class PairedText:
    """The documents of a text that both models have read in the same windows.

    Args:
        rows: of eval.csv, of the base and of the other.
        has_one_tokenizer: whether both models read the same tokens; if not, bits per byte alone are
            comparable, and documents that only one of them has read whole are left out.
        n_tokens: of each document; of the base's tokens.
        nats, text_nats: (2, documents), the base first; `text_nats` without end-of-text.
        n_bytes: of each document.
    """

    rows: tuple[Row, Row]
    has_one_tokenizer: bool
    n_tokens: Numbers
    nats: Numbers
    text_nats: Numbers
    n_bytes: Numbers


@dataclass(frozen=True)
class PairedTask:
    """The questions of a task that both models have answered.

    Args:
        rows: of eval.csv, of the base and of the other.
        values: by metric what each question contributes to the score of either.
    """

    rows: tuple[Row, Row]
    values: dict[str, tuple[list[float], list[float]]]


# Text


def text_rows(tables: TableFolder) -> list[Row]:
    """The losses in eval.csv whose windows are recorded; none without the file.

    Raises:
        UserError: eval.csv is damaged.
    """
    if not (tables.path / "eval.csv").exists():
        return []
    columns = tables.columns("eval")
    rows = [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]
    return [
        row
        for row in rows
        if (row["task"], row["metric"]) == (SPLIT, "loss") and row["suite"] in (TEXT, SPREAD_TEXT)
    ]


def alike_texts(base: ScoredModel, other: ScoredModel) -> list[tuple[Row, Row]]:
    """The best pair of rows of each text that was scored in the same way with both.

    Raises:
        UserError: an eval.csv is damaged.
    """
    keys = [text_key(model, has_one_tokenizer(base, other)) for model in (base, other)]
    theirs = {keys[1](row): row for row in text_rows(other.tables)}
    found: dict[str, list[tuple[Row, Row]]] = {}
    for row in text_rows(base.tables):
        key = keys[0](row)
        if key is not None and key in theirs:
            found.setdefault(row["fingerprint"], []).append((row, theirs[key]))
    return [max(pairs, key=lambda pair: rank(pair[0])) for pairs in found.values()]


def has_one_tokenizer(base: ScoredModel, other: ScoredModel) -> bool:
    """Whether both models read a text as the same tokens."""
    return base.run.tokenizer_fingerprint == other.run.tokenizer_fingerprint


def text_key(model: ScoredModel, by_tokens: bool) -> Any:
    """A function of a row of eval.csv that is equal for scores that can be paired.

    Args:
        by_tokens: whether the other model reads the same tokens; if not, only whole splits of texts
            that are known by their documents and bytes can be paired, and other rows have no key.
    """
    texts: Mapping[str, ScoredText] = scored_texts(model.run)

    def key(row: Row) -> Any:
        how = (row["dtype"], row["device"])
        if by_tokens:
            windows = tuple(row[name] for name in ("suite", "context", "n", "total"))
            return (row["fingerprint"], *windows, *how)
        text = texts.get(row["fingerprint"])
        if text is None or row["suite"] != TEXT or row["n"] != row["total"]:
            return None
        return (*(tuple(sorted(each.items())) for each in (text.documents, text.bytes)), *how)

    return key


def rank(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """The more the better: tokens or questions, then precision, then context."""
    return row["n"], row["dtype"] == "float32", row["context"]


def read_text(base: ScoredModel, other: ScoredModel, rows: tuple[Row, Row]) -> PairedText:
    """The documents behind a pair of `alike_texts`.

    Raises:
        UserError: the scores of the windows are gone, damaged or do not match eval.csv.
    """
    from smollm2.evaluation.text import document_rows  # with torch
    from smollm2.evaluation.text_records import recorded_text

    sums = []
    for model, row in zip((base, other), rows, strict=True):
        documents = document_rows(recorded_text(model.tables, row))
        sums.append({document["document"]: document for document in documents})
    is_one, (first, second) = has_one_tokenizer(base, other), sums
    size = "n_tokens" if is_one else "n_bytes"
    both = [
        number
        for number, document in first.items()
        if number in second and document[size] == second[number][size] > 0
    ]
    if is_one and not len(both) == len(first) == len(second):
        raise UserError(
            f"{base.name} and {other.name} have read other documents of one text; score it again."
        )

    def column(name: str) -> Numbers:
        return np.array([[one[number][name] for number in both] for one in sums], dtype=float)

    return PairedText(
        rows,
        is_one,
        n_tokens=column("n_tokens")[0],
        nats=column("nats"),
        text_nats=column("text_nats"),
        n_bytes=column("n_bytes")[0],
    )


# Tasks


def task_records(tables: TableFolder) -> list[Row]:
    """The rows of `task_scores`; none without eval.csv.

    Raises:
        UserError: as `task_scores`.
    """
    if not (tables.path / "eval.csv").exists():
        return []
    return task_scores(tables)


def alike_tasks(base: ScoredModel, other: ScoredModel) -> list[list[tuple[Row, Row]]]:
    """The best pair of rows of each task that both models have answered, a list of its metrics.

    Raises:
        UserError: an eval.csv is damaged.
    """
    # Not the context: questions are shorter than what the models read.
    same = ["task", "suite", "shots", "split", "dtype", "device", "n", "total", "fingerprint"]
    rows = [task_records(model.tables) for model in (base, other)]
    theirs = {(*(row[name] for name in same), row["metric"]): row for row in rows[1]}
    found: dict[tuple[str, ...], dict[Any, list[tuple[Row, Row]]]] = {}
    for row in rows[0]:
        questions = tuple(row[name] for name in same)
        if (*questions, row["metric"]) in theirs:
            task = tuple(row[name] for name in same[:4])
            by_questions = found.setdefault(task, {})
            pair = row, theirs[*questions, row["metric"]]
            by_questions.setdefault(questions, []).append(pair)
    return [
        max(by_questions.values(), key=lambda pairs: rank(pairs[0][0]))
        for by_questions in found.values()
    ]


def read_task(
    base: ScoredModel, other: ScoredModel, pairs: Iterable[tuple[Row, Row]]
) -> PairedTask:
    """The questions behind the metrics of a task.

    Raises:
        UserError: the scores question by question are gone, damaged or do not match eval.csv.
    """
    found = list(pairs)
    values = {
        str(rows[0]["metric"]): (values_of(base, rows[0]), values_of(other, rows[1]))
        for rows in found
    }
    return PairedTask(found[0], values)


def values_of(model: ScoredModel, row: Row) -> list[float]:
    """What each question contributes to a score.

    Raises:
        UserError: as `read_task`.
    """
    answers = recorded_answers(model.tables, str(row["items"]), row["n"], row["fingerprint"])
    values = answers.values(row["metric"])
    if not math.isclose(fmean(values), row["value"], rel_tol=1e-9, abs_tol=1e-12):
        raise UserError(
            f"{row['metric']} of {row['task']} in eval.csv of {model.name} is {row['value']:g}, "
            f"and its items give {fmean(values):g}: one of the two was changed; score it again "
            "with smolctl eval."
        )
    return values
