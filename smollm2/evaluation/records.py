"""Evaluations of a run: scores item by item, saved as they are computed, and their metrics.

During an evaluation each batch of scores is appended to `items/NAME.csv`; at the end they are moved
to `items/NAME.csv.gz`. Saved scores are not computed again: a killed evaluation resumes, and one
with a larger limit reuses the scores of a smaller one.
"""

import dataclasses
import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from smollm2.data import spread_windows, window_count
from smollm2.errors import RunError
from smollm2.evaluation.multiple_choice import ItemScore, score_items, summarize
from smollm2.evaluation.score_file import Score, ScoreFile
from smollm2.evaluation.tasks import TaskItems
from smollm2.evaluation.text import TextScore, held_out, held_out_rows, score_text
from smollm2.model.transformer import SmolLM2
from smollm2.runs.conditions import CONDITIONS, SPREAD_TEXT, TEXT, Conditions
from smollm2.runs.run import Run
from smollm2.runs.scored_texts import note_scored_text
from smollm2.runs.tables import TableFolder

if TYPE_CHECKING:
    import numpy as np
    from tokenizers import Tokenizer

    from smollm2.data import TokenData

OnProgress = Callable[[int], None]


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

    def file(self, kind: type[Score], what: str, *content: object) -> ScoreFile[Score]:
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
