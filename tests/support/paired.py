"""Scores of texts and tasks, planted in a run as `smolctl eval` leaves them."""

from collections.abc import Sequence
from typing import Any

from support.planted import task_conditions

from smollm2.evaluation.answers import ItemScore
from smollm2.evaluation.records import put_rows
from smollm2.evaluation.score_file import ScoreFile
from smollm2.evaluation.tasks import items_fingerprint
from smollm2.evaluation.text import TextScore
from smollm2.runs.run import Run

CONTEXT = 10  # tokens in a window
TEXT = "f" * 16


def plant_text(
    run: Run,
    losses: Sequence[float],
    windows: Sequence[int] | None = None,
    *,
    fingerprint: str = TEXT,
    source: str = "novels.jsonl.gz",
    of: int | None = None,
    bytes_per_token: float = 4,
    **conditions: Any,
) -> str:
    """Documents with these losses in nats/token, each of so many whole windows (one by default);
    `of` windows are in the split. Returns the name of the file of items."""
    windows = windows or [1] * len(losses)
    owners = [number for number, count in enumerate(windows) for _ in range(count)]
    scores = [
        TextScore(
            window,
            document,
            n_tokens=CONTEXT,
            nats=losses[document] * CONTEXT,
            hits=1,
            text_nats=losses[document] * CONTEXT,
            n_bytes=round(CONTEXT * bytes_per_token),
        )
        for window, document in enumerate(owners)
    ]
    n, total = len(scores) * CONTEXT, (of or len(scores)) * CONTEXT
    how = {"suite": "text", "shots": None, "split": "test", "context": CONTEXT}
    how |= {"dtype": "float32", "device": "cpu"} | conditions
    name = f"test-{fingerprint}-{n}-{how['dtype']}.csv.gz"
    ScoreFile(run.path / "items" / name, TextScore).extend([], [scores], lambda found: None)
    row = {"task": "test", "metric": "loss", "value": sum(s.nats for s in scores) / n, "n": n}
    row |= {"total": total, "clusters": len(losses), "fingerprint": fingerprint, "items": name}
    put_rows(run, [row | how])
    text = {"source": source, "documents": {"test": len(losses)}, "bytes": {"test": 1000}}
    run.update(texts=run.manifest.get("texts", {}) | {fingerprint: text})
    return name


def plant_answers(
    run: Run, right: Sequence[bool], *, task: str = "piqa", of: int | None = None, **conditions: Any
) -> None:
    """Questions with two choices, each answered right or wrong; `of` are in the task."""
    scores = [
        ItemScore(
            number,
            question=f"{number:016x}",
            gold=0,
            log_likelihoods=(-1.0, -2.0) if is_right else (-2.0, -1.0),
            greedy=(False, False),
            characters=(10, 10),
            n_bytes=(10, 10),
        )
        for number, is_right in enumerate(right)
    ]
    name = f"{task}-{len(right)}.csv.gz"
    ScoreFile(run.path / "items" / name, ItemScore).extend([], [scores], lambda found: None)
    values = {
        metric: [score.value(metric) for score in scores]
        for metric in ("acc", "acc_norm", "bits_per_byte")
    }
    common = {"task": task, "n": len(right), "total": of or len(right), "clusters": len(right)}
    common |= {"fingerprint": items_fingerprint(score.question for score in scores), "items": name}
    rows = [
        common | {"metric": metric, "value": sum(column) / len(column), "stderr": 0.1}
        for metric, column in values.items()
    ]
    put_rows(run, [row | task_conditions(**conditions) for row in rows])
