"""Evaluations of a run: scores item by item, saved as they are computed, and their metrics.

During an evaluation each batch of scores is appended to `items/NAME.csv`; at the end they are moved
to `items/NAME.csv.gz`. Saved scores are not computed again: a killed evaluation resumes, and one
with a larger limit reuses the scores of a smaller one.
"""

import csv
import dataclasses
import functools
import gzip
import hashlib
import io
import json
import math
import typing
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from smollm2.data import spread_windows, window_count
from smollm2.errors import RunError, UserError
from smollm2.evaluation.multiple_choice import ItemScore, score_items, summarize
from smollm2.evaluation.tasks import TaskItems, items_fingerprint
from smollm2.evaluation.text import TextScore, held_out, held_out_rows, score_text
from smollm2.files import append, gzipped, replace_file
from smollm2.model.transformer import SmolLM2
from smollm2.runs.conditions import CONDITIONS, SPREAD_TEXT, TEXT, Conditions
from smollm2.runs.run import Run
from smollm2.runs.scored_texts import note_scored_text
from smollm2.runs.tables import TableFolder

if TYPE_CHECKING:
    import numpy as np
    from tokenizers import Tokenizer

    from smollm2.data import TokenData

DAMAGED = (  # what reading a damaged file of scores may raise
    *(OSError, EOFError, zlib.error, csv.Error),
    *(ValueError, KeyError, TypeError, AttributeError, ArithmeticError),
)
OnProgress = Callable[[int], None]
Score = TypeVar("Score", bound=TextScore | ItemScore)


@dataclass(frozen=True)
class EvalTarget:
    """A model to score, on the device and in the dtype in which it computes.

    Args:
        run: the run it comes from.
        tables: where its scores are saved: the run itself, or the folder of a quantized model.
        weights: SHA-256 of the file of its weights.
    """

    run: Run
    tables: TableFolder
    model: SmolLM2
    weights: str

    @property
    def dtype(self) -> str:
        return str(self.model.dtype).removeprefix("torch.")

    @property
    def device(self) -> str:
        return self.model.device.type

    def file(self, kind: type[Score], what: str, *content: object) -> "ScoreFile[Score]":
        """The file of the scores of `what`. Its name depends on the weights, dtype, device and
        `content`, so that scores never mix."""
        key = json.dumps([self.weights, self.device, *content])
        digest = hashlib.sha256(key.encode()).hexdigest()[:8]
        return ScoreFile(self.tables.path / "items" / f"{what}-{self.dtype}-{digest}.csv.gz", kind)


def evaluate_text(
    target: EvalTarget,
    data: "TokenData",
    split: str,
    *,
    n_tokens: int | None,
    spread: bool = False,
    seq_len: int | None = None,
    batch_size: int | None,
    on_progress: OnProgress,
) -> list[dict[str, Any]]:
    """Score `split` in windows of `seq_len` and save the scores.

    Args:
        n_tokens: tokens to score, rounded down to whole windows; None: the whole split.
        spread: whether to take windows at even distances instead of the first ones.
        seq_len: None: as `window_length` says.
        batch_size: windows per forward pass; None: as in the run's training.
        on_progress: called at the start and after each batch with the number of scored windows.

    Returns:
        The rows added to eval.csv.

    Raises:
        UserError: the split has no whole window, or the saved scores are damaged.
        RunError: a score is not finite.
    """
    run, tokens = target.run, getattr(data, split)
    seq_len = seq_len or window_length(run, tokens)
    count = window_count(tokens, seq_len, n_tokens)
    wanted = spread_windows(window_count(tokens, seq_len), count) if spread else range(count)
    done = 0

    def on_scores(scores: list[TextScore]) -> None:
        nonlocal done
        done += len({score.window for score in scores if score.window in wanted})
        on_progress(done)

    with run.writing():
        file = target.file(TextScore, split, data.fingerprint, seq_len)
        found = file.read()
        # If the process died while it wrote a window, some documents of it may be missing.
        sizes: Counter[int] = Counter()
        for score in found:
            sizes[score.window] += score.n_tokens
        known = [score for score in found if sizes[score.window] == seq_len]
        scored = {score.window for score in known}
        batches = score_text(
            target.model,
            data,
            split,
            seq_len,
            batch_size or run.protocol.micro_batch_size,
            [number for number in wanted if number not in scored],
        )
        scores = file.extend(known, finite(batches, target), on_scores)
        whole = held_out(score for score in scores if score.window in wanted)
        suite = SPREAD_TEXT if spread else TEXT
        conditions = Conditions(suite, None, split, seq_len, target.dtype, target.device)
        rows = [row | {"items": file.path.name} for row in held_out_rows(whole, data, conditions)]
        if run.protocol.data is None or run.protocol.data.fingerprint != data.fingerprint:
            note_scored_text(run, data)
        put_rows(target.tables, rows)
    return rows


def window_length(run: Run, tokens: "np.ndarray") -> int:
    """Tokens per window of held-out text: the run's sequence length. For an imported model, at
    most as many as the text has."""
    seq_len = run.protocol.seq_len
    return min(seq_len, max(1, len(tokens) - 1)) if run.is_imported else seq_len


def evaluate_task(
    target: EvalTarget,
    tokenizer: "Tokenizer",
    asked: TaskItems,
    *,
    batch_size: int | None,
    on_progress: OnProgress,
) -> list[dict[str, Any]]:
    """Score the questions of a task and save the scores.

    Args:
        batch_size: questions per forward pass; see `score_items`.
        on_progress: called at the start and after each batch with the number of scored questions.

    Returns:
        The rows added to eval.csv.

    Raises:
        UserError: see `score_items`; or the saved scores are damaged.
        RunError: a score is not finite.
    """
    name, max_len = asked.task.name, target.model.config.max_seq_len
    wanted = range(len(asked.items))
    done = 0

    def on_scores(scores: list[ItemScore]) -> None:
        nonlocal done
        done += sum(score.item in wanted for score in scores)
        on_progress(done)

    with target.run.writing():
        file = target.file(ItemScore, f"{name}-{asked.split}", asked.whole_fingerprint)
        known = file.read()
        batches = score_items(
            target.model,
            tokenizer,
            asked.items,
            max_len=max_len,
            batch_size=batch_size,
            skip={score.item for score in known},
        )
        scores = file.extend(known, finite(batches, target), on_scores)
        task = asked.task
        conditions = Conditions(
            *(task.suite, task.shots, asked.split, max_len, target.dtype, target.device)
        )
        rows = [
            row
            | dataclasses.asdict(conditions)
            | {
                "total": asked.total,
                "clusters": row["n"],
                "fingerprint": asked.fingerprint,
                "items": file.path.name,
            }
            for row in summarize(asked.task, [score for score in scores if score.item in wanted])
        ]
        put_rows(target.tables, rows)
    return rows


def finite(batches: Iterable[list[Score]], target: EvalTarget) -> Iterator[list[Score]]:
    """The batches, up to one with a score that is NaN or infinite.

    Raises:
        RunError: there is one.
    """
    for batch in batches:
        for score in batch:
            nats = (score.nats,) if isinstance(score, TextScore) else score.log_likelihoods
            if not all(map(math.isfinite, nats)):
                hint = "" if target.dtype == "float32" else "; `dtype=fp32` has more room"
                raise RunError(
                    f"The scores of {target.tables.name} are not finite: its weights make numbers "
                    f"that overflow {target.dtype}{hint}. This batch was not saved."
                )
        yield batch


def recorded_items(tables: TableFolder, name: str, n: int, fingerprint: str) -> list[ItemScore]:
    """The scores of the first `n` questions behind a row of eval.csv.

    Args:
        name, fingerprint: the row's `items` and `fingerprint`.

    Raises:
        UserError: they are missing, damaged, or of other questions.
    """
    found = [s for s in ScoreFile(tables.path / "items" / name, ItemScore).read() if s.item < n]
    if items_fingerprint(score.question for score in found) != fingerprint:
        raise UserError(
            f"items/{name} of run {tables.name!r} lacks the {n} questions behind eval.csv; "
            "score them again with smolctl eval."
        )
    return found


def put_rows(tables: TableFolder, rows: list[dict[str, Any]]) -> None:
    """Add rows to eval.csv. A repeated measurement replaces its old rows where they are, so that
    equal scores leave the file unchanged."""

    def key(row: dict[str, Any]) -> tuple[str, ...]:
        """The cells that identify a measurement, as in the file: None is empty."""
        cells = (row[name] for name in ("task", "n", *CONDITIONS, "fingerprint"))
        return tuple("" if cell is None else str(cell) for cell in cells)

    new: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        new.setdefault(key(row), []).append(row)
    measured, kept = set(new), []
    for row in tables.rows("eval"):
        if key(row) in new:  # all rows of the measurement, at the place of its first one
            kept += new.pop(key(row))
        elif key(row) not in measured:
            kept.append(row)
    tables.replace("eval", kept + [row for group in new.values() for row in group])


@dataclass(frozen=True)
class ScoreFile(Generic[Score]):
    """Scores in `path` (NAME.csv.gz) and, during an evaluation, in NAME.csv."""

    path: Path
    kind: type[Score]

    @property
    def growing(self) -> Path:
        return self.path.with_suffix("")

    def read(self) -> list[Score]:
        """The saved scores in order of their keys; a half-written last line is ignored.

        Raises:
            UserError: a file is damaged.
        """
        scores: dict[tuple[int, ...], Score] = {}
        columns = converters(self.kind)
        try:
            for text in self._texts():
                whole = text[: text.rfind("\n") + 1]
                for row in csv.DictReader(io.StringIO(whole)):
                    cells = {name: convert(row[name]) for name, convert in columns.items()}
                    score = self.kind(**cells)
                    scores[score.key] = score
        except DAMAGED as error:
            here = " or ".join(p.name for p in (self.path, self.growing) if p.exists())
            folder = self.path.resolve().parents[1]
            run = folder.name
            if folder.parent.name == "quantized":
                run = f"{folder.parents[1].name}+{run}"
            raise UserError(
                f"items/{here} of run {run!r} is damaged ({error}); remove it, and its items will "
                "be scored again."
            ) from None
        return [scores[key] for key in sorted(scores)]

    def _texts(self) -> Iterator[str]:
        if self.path.exists():
            yield gzip.decompress(self.path.read_bytes()).decode()
        if self.growing.exists():
            yield self.growing.read_text(encoding="utf-8")

    def extend(
        self,
        known: list[Score],
        batches: Iterable[list[Score]],
        on_scores: Callable[[list[Score]], None],
    ) -> list[Score]:
        """`known` and the scores of `batches`, in order. A batch is on disk before the next one is
        computed.

        Args:
            on_scores: called with `known`, then with each batch.
        """
        scores = list(known)
        on_scores(known)
        for batch in batches:
            if len(scores) == len(known):
                self.path.parent.mkdir(exist_ok=True)
                replace_file(self.growing, self._text(known))  # drops incomplete scores
            append(self.growing, self._text(batch, header=False))
            scores += batch
            on_scores(batch)
        scores.sort(key=lambda score: score.key)
        if len(scores) > len(known) or self.growing.exists():
            replace_file(self.path, gzipped(self._text(scores).encode()))
            self.growing.unlink(missing_ok=True)
        return scores

    def _text(self, scores: list[Score], header: bool = True) -> str:
        text = io.StringIO()
        names = [field.name for field in dataclasses.fields(self.kind)]
        writer = csv.DictWriter(text, [*names, *self.kind.derived], lineterminator="\n")
        if header:
            writer.writeheader()
        for score in scores:
            writer.writerow({name: to_cell(getattr(score, name)) for name in writer.fieldnames})
        return text.getvalue()


def to_cell(value: Any) -> Any:
    """A tuple as words separated by spaces; True and False as 1 and 0."""
    if isinstance(value, tuple):
        return " ".join(str(to_cell(part)) for part in value)
    return int(value) if isinstance(value, bool) else value


def converters(kind: type[Score]) -> dict[str, Callable[[str], Any]]:
    """By name of a score's field: what turns its cell into its value. Derived columns are not
    read."""
    found: dict[str, Callable[[str], Any]] = {}
    for name, hint in typing.get_type_hints(kind).items():
        if typing.get_origin(hint) is tuple:
            found[name] = functools.partial(numbers_in, of=typing.get_args(hint)[0])
        elif typing.get_origin(hint) is not typing.ClassVar:
            found[name] = hint
    return found


def numbers_in(cell: str, of: type) -> tuple[Any, ...]:
    """The numbers of a cell as `to_cell` writes a tuple."""
    return tuple(of(float(word)) for word in cell.split())
