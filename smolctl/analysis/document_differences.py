"""The difference of two arms over the documents of the final test."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from smolctl.analysis.arms import Arm
from smolctl.analysis.document_interval import DocumentIntervals, document_intervals
from smolctl.analysis.study_verdicts import blocks_by_seed

if TYPE_CHECKING:
    from smollm2.runs.tables import Columns


def document_difference(
    base: Arm, arm: Arm, *, blocked: bool, confidence: float
) -> DocumentIntervals | None:
    """See `document_intervals`; None unless every run has sums of the same documents."""
    sums = [by_block(one) for one in (base, arm)]
    tables = [table for each in sums for table in each.values()]
    if len(tables) < len(base.runs) + len(arm.runs) or not are_alike(tables):
        return None
    counts = tables[0]["n_tokens"].astype(float)
    blocks = sorted({block for each in sums for block in each})
    lacking = np.full(len(counts), np.nan)
    first, second = (
        np.array([each[block]["nats"] if block in each else lacking for block in blocks])
        for each in sums
    )
    return document_intervals(first, second, counts, blocked=blocked, confidence=confidence)


def by_block(arm: Arm) -> dict[int, "Columns"]:
    """The sums of each run that has them by its block, a row per document."""
    blocks = blocks_by_seed(arm)
    return {
        blocks[run.protocol.seed]: run.documents for run in arm.runs if run.documents is not None
    }


def are_alike(tables: Sequence["Columns"]) -> bool:
    """Whether all are of the same documents, in the same order."""
    first, *others = tables
    names = ("document", "n_tokens")
    return all(np.array_equal(first[name], one[name]) for one in others for name in names)
