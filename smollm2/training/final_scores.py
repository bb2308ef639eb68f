"""The held-out text that a run is scored on, and what it records of that at its end."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from smollm2.data import spread_windows, window_count
from smollm2.data.ngram import floors_on_windows
from smollm2.evaluation.text import TextScore, document_rows, held_out, held_out_rows
from smollm2.protocol.run_config import SPREAD, ResolvedConfig
from smollm2.runs.conditions import FINAL_TEST, FINAL_VALIDATION, Conditions
from smollm2.runs.manifest import Role
from smollm2.runs.manifest_types import SCORED_TEXT
from smollm2.runs.run import Run
from smollm2.runs.step_rows import start_step

if TYPE_CHECKING:
    import numpy as np

    from smollm2.data import TokenData


class FinalText(NamedTuple):
    """What a run is scored on at its end: a suite of eval.csv, a split and a number of tokens."""

    suite: str
    split: str
    n_tokens: int


def final_text(run: Run) -> FinalText:
    """The test split; for a run that tunes the learning rate as much of the validation split, as a
    choice must not see the test."""
    n_tokens = run.protocol.test_tokens
    if run.role is Role.SWEEP:
        return FinalText(FINAL_VALIDATION, "validation", n_tokens)
    return FinalText(FINAL_TEST, "test", n_tokens)


def windows_of(protocol: ResolvedConfig, tokens: "np.ndarray", n_tokens: int) -> Sequence[int]:
    """The windows in which `n_tokens` of a split are scored."""
    count = window_count(tokens, protocol.seq_len, n_tokens)
    if protocol.held_out_windows == SPREAD:
        return spread_windows(window_count(tokens, protocol.seq_len), count)
    return range(count)


def record_final(run: Run, data: "TokenData", scores: list[TextScore]) -> None:
    """Write eval.csv and, for the final test, documents.csv."""
    protocol, text = run.protocol, final_text(run)
    conditions = Conditions(
        text.suite, None, text.split, protocol.seq_len, protocol.dtype, protocol.device
    )
    if text.suite == FINAL_TEST:
        run.replace("documents", document_rows(scores))
    run.replace("eval", held_out_rows(held_out(scores), data, conditions))


def floors_of(run: Run, data: "TokenData") -> dict[str, Any] | None:
    """What the model must beat: the losses of n-gram models of as many training tokens, on the very
    windows of the final test. None if it is unknown how many tokens it has seen, as it started with
    the weights of another run; and for a run that tunes the learning rate."""
    if run.role is Role.SWEEP or (run.manifest["started_from"] and not start_step(run)):
        return None
    protocol = run.protocol
    n_tokens = protocol.steps * protocol.tokens_per_step
    numbers = windows_of(protocol, data.test, protocol.test_tokens)
    if len(numbers) == window_count(data.test, protocol.seq_len):
        floors = data.floors_at(n_tokens)
    else:
        floors = floors_on_windows(
            *(data.train, data.test, data.vocab_size),
            seq_len=protocol.seq_len,
            numbers=numbers,
            n_tokens=n_tokens,
        )
    return dataclasses.asdict(floors) | {"text": SCORED_TEXT} if floors else None


def count_floors_of(run: Run, data: "TokenData") -> None:
    """Record the floors of a finished run that has none of the text that it was scored on, as those
    of older versions: their floors are of the whole test split.

    Raises:
        RunError: run.json cannot be written.
    """
    recorded = run.manifest.get("floors")
    if not recorded or recorded.get("text") != SCORED_TEXT:
        floors = floors_of(run, data)
        if floors != recorded:
            run.update(floors=floors)
