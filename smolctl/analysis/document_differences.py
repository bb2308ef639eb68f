"""The difference of two arms over the documents of the final test."""

import numpy as np
import pandas as pd

from smolctl.analysis.arms import Arm
from smolctl.analysis.document_interval import DocumentIntervals, document_intervals
from smolctl.analysis.study_verdicts import blocks_by_seed


def document_difference(
    base: Arm, arm: Arm, *, blocked: bool, confidence: float
) -> DocumentIntervals | None:
    """See `document_intervals`; None unless every run has sums of the same documents."""
    sums = [by_block(one) for one in (base, arm)]
    tokens = [table["n_tokens"] for each in sums for table in each.values()]
    runs = len(base.runs) + len(arm.runs)
    if len(tokens) < runs or not all(one.equals(tokens[0]) for one in tokens):
        return None
    blocks = sorted({block for each in sums for block in each})
    lacking = np.full(len(tokens[0]), np.nan)
    first, second = (
        np.array([each[block]["nats"] if block in each else lacking for block in blocks])
        for each in sums
    )
    counts = tokens[0].to_numpy(dtype=float)
    return document_intervals(first, second, counts, blocked=blocked, confidence=confidence)


def by_block(arm: Arm) -> dict[int, pd.DataFrame]:
    """The sums of each run that has them by its block, a row per document."""
    blocks = blocks_by_seed(arm)
    return {
        blocks[run.protocol.seed]: run.documents.set_index("document")
        for run in arm.runs
        if run.documents is not None
    }
