"""What quantizing changed: bytes, validation loss, speed, as a row of quantize.csv."""

from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from smollm2.data import spread_windows
from smollm2.evaluate import Estimate, TextScore, ratio
from smollm2.generate import Decoder, Speed, measure_speed
from smollm2.model import SmolLM2
from smollm2.quantize.convert import TABLE_NAMES, Plain, memory_bytes
from smollm2.scores import ScoreFile
from smollm2.tables import Tables

ROUNDS = 3  # of the original and the quantized model in turns, of which the median counts


def sizes(model: SmolLM2, plain: Plain | None = None, file: Path | None = None) -> dict[str, int]:
    """Bytes in memory and on disk, with and without the embedding and the head.

    Args:
        plain, file: what was saved, and where; None for the original, of which no file is written
            in bf16 but would be as large as it is in memory.
    """
    in_memory = memory_bytes(model)
    embedding = sum(memory_bytes(table) for table in {model.embed, model.head})
    on_disk, embedding_on_disk = in_memory, embedding
    if plain is not None and file is not None:
        on_disk = file.stat().st_size
        tables = tuple(f"{name}." for name in TABLE_NAMES)
        tensors = plain.tensors().items()
        embedding_on_disk = sum(t.nbytes for name, t in tensors if name.startswith(tables))
    return {
        "memory_bytes": in_memory,
        "disk_bytes": on_disk,
        "memory_bytes_without_embedding": in_memory - embedding,
        "disk_bytes_without_embedding": on_disk - embedding_on_disk,
    }


def loss_change(before: list[TextScore], after: list[TextScore]) -> Estimate:
    """Mean change of the loss in nats a token over the same text, with its standard error over
    documents: what the two models share of a document's difficulty is not in it.

    Raises:
        ValueError: the scores are not of the same windows.
    """
    if [(s.key, s.n_tokens) for s in before] != [(s.key, s.n_tokens) for s in after]:
        raise ValueError("The scores are not of the same text.")
    _, cluster = np.unique([score.document for score in before], return_inverse=True)
    changes = [new.nats - old.nats for old, new in zip(before, after, strict=True)]
    n_tokens = np.bincount(cluster, [score.n_tokens for score in before])
    return ratio(np.bincount(cluster, changes), n_tokens)


def scored_windows(tables: Tables, row: dict[str, Any], seq_len: int) -> list[TextScore]:
    """The scores behind a row of eval.csv about windows spread over held-out text."""
    total, count = int(row["total"]) // seq_len, int(row["n"]) // seq_len
    wanted = set(spread_windows(total, count))
    scores = ScoreFile(tables.path / "items" / row["items"], TextScore).read()
    found = [score for score in scores if score.window in wanted]
    if {score.window for score in found} != wanted:
        raise ValueError(f"{row['items']} lacks windows that were scored.")
    return found


def speeds_in_turns(before: Decoder, after: Decoder, n: int) -> tuple[Speed, Speed]:
    """The median speed of the second with `n` tokens of prompt and `n` new ones, and the median
    ratio of it to the first's."""
    for decoder in (before, after):
        measure_speed(decoder, n, n)  # the first has more to do
    rounds = [(measure_speed(before, n, n), measure_speed(after, n, n)) for _ in range(ROUNDS)]
    ratios = [
        Speed(
            new.prefill_tokens_per_second / old.prefill_tokens_per_second,
            new.decode_tokens_per_second / old.decode_tokens_per_second,
        )
        for old, new in rounds
    ]
    return middle([new for _, new in rounds]), middle(ratios)


def middle(speeds: list[Speed]) -> Speed:
    """Their medians."""
    return Speed(
        median(speed.prefill_tokens_per_second for speed in speeds),
        median(speed.decode_tokens_per_second for speed in speeds),
    )
