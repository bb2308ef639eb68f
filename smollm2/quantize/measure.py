"""What quantizing changes in bytes and speed, for a row of quantize.csv."""

from pathlib import Path
from statistics import median

from smollm2.inference.decoder import Decoder, Speed, measure_speed
from smollm2.model.transformer import SmolLM2
from smollm2.quantize.convert import TABLE_NAMES, QuantizedState, memory_bytes

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
