"""What quantizing changes: bytes, validation loss and speed, for a row of quantize.csv."""

from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from smollm2.data import spread_windows
from smollm2.evaluation.records import ScoreFile
from smollm2.evaluation.text import Estimate, TextScore, ratio_of_sums
from smollm2.inference.decoder import Decoder, Speed, measure_speed
from smollm2.model.transformer import SmolLM2
from smollm2.quantize.convert import TABLE_NAMES, QuantizedState, memory_bytes
from smollm2.runs.tables import TableFolder

ROUNDS = 3  # alternating between the original and the quantized model; the median counts


def sizes(
    model: SmolLM2, state: QuantizedState | None = None, file: Path | None = None
) -> dict[str, int]:
    """Bytes in memory and on disk, with and without the embedding and the head.

    Args:
        state, file: what was saved, and where; None for the original, whose file in bf16 would be
            as large as it is in memory.
    """
    in_memory = memory_bytes(model)
    embedding = sum(memory_bytes(table) for table in {model.embed, model.head})
    on_disk, embedding_on_disk = in_memory, embedding
    if state is not None and file is not None:
        on_disk = file.stat().st_size
        tables = tuple(f"{name}." for name in TABLE_NAMES)
        tensors = state.tensors().items()
        embedding_on_disk = sum(t.nbytes for name, t in tensors if name.startswith(tables))
    return {
        "memory_bytes": in_memory,
        "disk_bytes": on_disk,
        "memory_bytes_without_embedding": in_memory - embedding,
        "disk_bytes_without_embedding": on_disk - embedding_on_disk,
    }


def loss_change(before: list[TextScore], after: list[TextScore]) -> Estimate:
    """Mean change of the loss in nats/token over the same text. Its standard error is over
    documents and paired: it excludes how difficult a document is for both models.

    Raises:
        ValueError: the scores are of different windows.
    """
    if [(s.key, s.n_tokens) for s in before] != [(s.key, s.n_tokens) for s in after]:
        raise ValueError("The scores are of different text.")
    _, cluster = np.unique([score.document for score in before], return_inverse=True)
    changes = [new.nats - old.nats for old, new in zip(before, after, strict=True)]
    n_tokens = np.bincount(cluster, [score.n_tokens for score in before])
    return ratio_of_sums(np.bincount(cluster, changes), n_tokens)


def scored_windows(tables: TableFolder, row: dict[str, Any], seq_len: int) -> list[TextScore]:
    """The scores behind a row of eval.csv on windows spread over held-out text."""
    total, count = int(row["total"]) // seq_len, int(row["n"]) // seq_len
    wanted = set(spread_windows(total, count))
    scores = ScoreFile(tables.path / "items" / row["items"], TextScore).read()
    found = [score for score in scores if score.window in wanted]
    if {score.window for score in found} != wanted:
        raise ValueError(f"{row['items']} lacks windows that were scored.")
    return found


def speeds_in_turns(before: Decoder, after: Decoder, n: int) -> tuple[Speed, Speed]:
    """The median speed of `after` with `n` tokens of prompt and `n` new ones, and the median of its
    ratio to the speed of `before`."""
    for decoder in (before, after):
        measure_speed(decoder, n, n)  # warm-up
    rounds = [(measure_speed(before, n, n), measure_speed(after, n, n)) for _ in range(ROUNDS)]
    ratios = [
        Speed(
            new.prefill_tokens_per_second / old.prefill_tokens_per_second,
            new.decode_tokens_per_second / old.decode_tokens_per_second,
        )
        for old, new in rounds
    ]
    return median_speed([new for _, new in rounds]), median_speed(ratios)


def median_speed(speeds: list[Speed]) -> Speed:
    """The medians of prefill and of decoding."""
    return Speed(
        median(speed.prefill_tokens_per_second for speed in speeds),
        median(speed.decode_tokens_per_second for speed in speeds),
    )
