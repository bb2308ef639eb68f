"""Evaluations of a run: scores item by item, kept as they come, and what they add up to.

While an evaluation is under way its scores stand in `items/NAME.csv`, to which each batch is added;
once it is complete they are in `items/NAME.csv.gz`. Whatever is found there is not computed again,
so a killed evaluation goes on where it was, and one with a larger limit uses the smaller's scores.
"""

import csv
import dataclasses
import gzip
import hashlib
import io
import json
import typing
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from smollm2.data import spread_windows, window_count
from smollm2.errors import UserError
from smollm2.evaluate import TextScore, held_out, held_out_rows, score_text
from smollm2.files import replace_file
from smollm2.model import SmolLM2
from smollm2.multiple_choice import ItemScore, score_items, summarize
from smollm2.protocol import text_protocol
from smollm2.runs import Run
from smollm2.tables import Tables
from smollm2.tasks import TaskItems, items_fingerprint

if TYPE_CHECKING:
    import numpy as np
    from tokenizers import Tokenizer

    from smollm2.data import TokenData

OnProgress = Callable[[int], None]
Score = TypeVar("Score", bound=TextScore | ItemScore)


@dataclass(frozen=True)
class Subject:
    """A model to be scored, on the device and in the dtype in which it computes.

    Args:
        run: that it comes from.
        tables: where its scores go: the run itself, or the folder of a quantized model.
        weights: SHA-256 of the file they were read from.
    """

    run: Run
    tables: Tables
    model: SmolLM2
    weights: str

    @property
    def dtype(self) -> str:
        return str(self.model.dtype).removeprefix("torch.")

    @property
    def device(self) -> str:
        return self.model.device.type

    def file(self, kind: type[Score], what: str, *content: object) -> "ScoreFile[Score]":
        """The record of `what`, scored by these weights on this device over this `content`: when
        one of them changes it is another file, so that scores never mix."""
        key = json.dumps([self.weights, self.device, *content])
        digest = hashlib.sha256(key.encode()).hexdigest()[:8]
        return ScoreFile(self.tables.path / "items" / f"{what}-{self.dtype}-{digest}.csv.gz", kind)


def evaluate_text(
    subject: Subject,
    data: "TokenData",
    split: str,
    *,
    n_tokens: int | None,
    spread: bool = False,
    batch_size: int | None,
    on_progress: OnProgress,
) -> list[dict[str, Any]]:
    """Score `split` in windows of `window_length` and record it; rows of eval.csv.

    Args:
        n_tokens: so many; None is the whole split.
        spread: they are windows at even distances, rather than the first.
        batch_size: windows in a forward pass; None is the run's.
        on_progress: called with how many windows are scored so far, at the start and with each
            batch.

    Raises:
        UserError: the split has no whole window, or the record is damaged.
    """
    run, tokens = subject.run, getattr(data, split)
    seq_len = window_length(run, tokens)
    count = window_count(tokens, seq_len, n_tokens)
    wanted = spread_windows(window_count(tokens, seq_len), count) if spread else range(count)
    done = 0

    def on_scores(scores: list[TextScore]) -> None:
        nonlocal done
        done += len({score.window for score in scores if score.window in wanted})
        on_progress(done)

    with run.writing():
        file = subject.file(TextScore, split, data.fingerprint, seq_len)
        found = file.read()
        # A window that was being written when the process died may lack a document.
        sizes: Counter[int] = Counter()
        for score in found:
            sizes[score.window] += score.n_tokens
        known = [score for score in found if sizes[score.window] == seq_len]
        scored = {score.window for score in known}
        batches = score_text(
            subject.model,
            data,
            split,
            seq_len,
            batch_size or run.protocol.batch_size,
            [number for number in wanted if number not in scored],
        )
        scores = file.extend(known, batches, on_scores)
        whole = held_out(score for score in scores if score.window in wanted)
        protocol = text_protocol(seq_len, subject.dtype, subject.device)
        protocol += ", spread" if spread else ""
        rows = [
            row | {"items": file.path.name}
            for row in held_out_rows(split, whole, data, seq_len, protocol)
        ]
        put_rows(subject.tables, rows)
    return rows


def window_length(run: Run, tokens: "np.ndarray") -> int:
    """Tokens in a window of held-out text: as many as the run was trained on at a time; of an
    imported model, whatever the text, as many as there are up to that."""
    seq_len = run.protocol.seq_len
    return min(seq_len, max(1, len(tokens) - 1)) if run.is_imported else seq_len


def evaluate_task(
    subject: Subject,
    tokenizer: "Tokenizer",
    asked: TaskItems,
    *,
    batch_size: int | None,
    on_progress: OnProgress,
) -> list[dict[str, Any]]:
    """Score the questions of a task and record them; rows of eval.csv.

    Args:
        batch_size: questions in a forward pass; None fills it with what suits the device.
        on_progress: called with how many questions are scored so far, at the start and with each
            batch.

    Raises:
        UserError: see `score_items`; or the record is damaged.
    """
    name, max_len = asked.task.name, subject.model.config.max_seq_len
    wanted = range(len(asked.items))
    done = 0

    def on_scores(scores: list[ItemScore]) -> None:
        nonlocal done
        done += sum(score.item in wanted for score in scores)
        on_progress(done)

    with subject.run.writing():
        file = subject.file(ItemScore, f"{name}-{asked.split}", asked.whole_fingerprint)
        known = file.read()
        batches = score_items(
            subject.model,
            tokenizer,
            asked.items,
            max_len=max_len,
            batch_size=batch_size,
            skip={score.item for score in known},
        )
        scores = file.extend(known, batches, on_scores)
        rows = [
            row
            | {
                "total": asked.total,
                "clusters": row["n"],
                "protocol": f"lm-eval, 0-shot, {asked.split} split, context {max_len}, "
                f"{subject.dtype}, {subject.device}",
                "fingerprint": asked.fingerprint,
                "items": file.path.name,
            }
            for row in summarize(asked.task, [score for score in scores if score.item in wanted])
        ]
        put_rows(subject.tables, rows)
    return rows


def recorded_items(tables: Tables, name: str, n: int, fingerprint: str) -> list[ItemScore]:
    """The scores of the first `n` questions, from which a row of eval.csv was made.

    Args:
        name, fingerprint: the row's `items` and `fingerprint`.

    Raises:
        UserError: they are not there, damaged, or of other questions.
    """
    found = [s for s in ScoreFile(tables.path / "items" / name, ItemScore).read() if s.item < n]
    if items_fingerprint(score.question for score in found) != fingerprint:
        raise UserError(
            f"items/{name} of run {tables.name!r} does not hold the {n} questions behind eval.csv; "
            "score them again with smolctl eval."
        )
    return found


def put_rows(tables: Tables, rows: list[dict[str, Any]]) -> None:
    """Add rows to eval.csv; those of a measurement that is there already take its place, so that
    what is scored again to the same numbers changes no byte."""

    def key(row: dict[str, Any]) -> tuple[str, ...]:
        return tuple(str(row[name]) for name in ("task", "n", "protocol", "fingerprint"))

    new: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        new.setdefault(key(row), []).append(row)
    measured, kept = set(new), []
    for row in tables.rows("eval"):
        if key(row) in new:  # all of a measurement's rows, where its first one was
            kept += new.pop(key(row))
        elif key(row) not in measured:
            kept.append(row)
    tables.replace("eval", kept + [row for group in new.values() for row in group])


@dataclass(frozen=True)
class ScoreFile(Generic[Score]):
    """Scores in `path` (NAME.csv.gz) and, while an evaluation is under way, in NAME.csv."""

    path: Path
    kind: type[Score]

    @property
    def growing(self) -> Path:
        return self.path.with_suffix("")

    def read(self) -> list[Score]:
        """What is recorded, without a half-written last line, in order of the items.

        Raises:
            UserError: a file is damaged.
        """
        scores: dict[tuple[int, ...], Score] = {}
        try:
            for text in self._texts():
                whole = text[: text.rfind("\n") + 1]
                for row in csv.DictReader(io.StringIO(whole)):
                    score = from_cells(self.kind, row)
                    scores[score.key] = score
        except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError) as error:
            here = " or ".join(p.name for p in (self.path, self.growing) if p.exists())
            folder = self.path.resolve().parents[1]
            run = folder.name
            if folder.parent.name == "quantized":
                run = f"{folder.parents[1].name}+{run}"
            raise UserError(
                f"items/{here} of run {run!r} is damaged ({error}); remove it, and the items are "
                "scored again."
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
        """`known` and what `batches` gives, in order; a batch is on disk before the next is made.

        Args:
            on_scores: called with what is known, then with each batch.
        """
        scores = list(known)
        on_scores(known)
        for batch in batches:
            if len(scores) == len(known):
                self.path.parent.mkdir(exist_ok=True)
                replace_file(self.growing, self._text(known))  # without what did not count
            with self.growing.open("a", encoding="utf-8", newline="") as file:
                file.write(self._text(batch, header=False))
            scores += batch
            on_scores(batch)
        scores.sort(key=lambda score: score.key)
        if len(scores) > len(known) or self.growing.exists():
            replace_file(self.path, gzip.compress(self._text(scores).encode(), mtime=0))
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
    """A tuple as words, True and False as 1 and 0."""
    if isinstance(value, tuple):
        return " ".join(str(to_cell(part)) for part in value)
    return int(value) if isinstance(value, bool) else value


def from_cells(kind: type[Score], row: dict[str, str]) -> Score:
    """The score that a row of a file holds; what was derived is not read."""
    values: dict[str, Any] = {}
    for name, hint in typing.get_type_hints(kind).items():
        if typing.get_origin(hint) is tuple:
            of = typing.get_args(hint)[0]
            values[name] = tuple(of(float(word)) for word in row[name].split())
        elif typing.get_origin(hint) is not typing.ClassVar:
            values[name] = hint(row[name])
    return kind(**values)
