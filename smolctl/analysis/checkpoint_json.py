"""What `compare --json` prints of two checkpoints."""

import dataclasses
from typing import Any

from smolctl.analysis.checkpoint_pair import AnswerChange, CheckpointPair, TextChange
from smolctl.analysis.paired_scores import Row, ScoredModel
from smolctl.analysis.verdicts import Difference
from smollm2.runs.conditions import CONDITIONS


def pair_to_dict(pair: CheckpointPair) -> dict[str, Any]:
    """The whole comparison for JSON."""
    return {
        "base": model_to_dict(pair.base),
        "checkpoint": model_to_dict(pair.other),
        "began_as_base": pair.began_as_base,
        "confidence": pair.confidence,
        "margin": pair.margin,
        "texts": [text_to_dict(text) for text in pair.texts],
        "tasks": [answers_to_dict(task) for task in pair.tasks],
        "problems": list(pair.problems),
    }


def model_to_dict(model: ScoredModel) -> dict[str, Any]:
    """A checkpoint by its names."""
    manifest = model.run.manifest
    return {
        "name": model.name,
        "study": model.run.study,
        "imported_from": model.run.origin if model.run.is_imported else None,
        "started_from": manifest["started_from"],
    }


def text_to_dict(text: TextChange) -> dict[str, Any]:
    """A text with its changes."""
    losses = text.losses or (None, None)
    return {
        "text": text.source,
        "role": text.role,
        **how(text.row),
        "documents": text.documents,
        "effective_documents": text.effective_documents,
        "n_tokens": text.n_tokens,
        "verdict": text.judged.verdict,
        "missing": list(text.judged.missing),
        "base_loss": losses[0],
        "loss": losses[1],
        "loss_change": text.loss_change and change_to_dict(text.loss_change),
        "base_bits_per_byte": text.bits[0],
        "bits_per_byte": text.bits[1],
        "bits_per_byte_change": change_to_dict(text.bits_change),
    }


def answers_to_dict(task: AnswerChange) -> dict[str, Any]:
    """A task with its changes."""
    return {
        "task": task.rows[0]["task"],
        **how(task.rows[0]),
        "verdict": task.judged.verdict,
        "missing": list(task.judged.missing),
        "newly_right": task.newly_right,
        "newly_wrong": task.newly_wrong,
        "metrics": [
            {"metric": one.metric, "base": one.scores[0], "checkpoint": one.scores[1]}
            | {"change": change_to_dict(one.change)}
            for one in task.metrics
        ],
    }


def how(row: Row) -> dict[str, Any]:
    """How a score was made, and on what."""
    names = (*CONDITIONS, "n", "total")
    cells = {name: row[name] for name in (*names, "fingerprint")}
    numbers = {name: int(cells[name]) for name in ("context", "n", "total")}
    shots = None if cells["shots"] != cells["shots"] else int(cells["shots"])
    return cells | numbers | {"shots": shots}


def change_to_dict(change: Difference) -> dict[str, Any]:
    """A change with its interval; the verdict is that of its text or task."""
    fields = dataclasses.asdict(change)
    names = ("mean", "standard_error", "degrees_of_freedom", "interval", "confidence", "p")
    return {name: fields[name] for name in names}
