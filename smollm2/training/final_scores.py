"""The held-out text that a run is scored on, and what it records of that at its end."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from smollm2.data import spread_windows, window_count
from smollm2.evaluation.text import TextScore, document_rows, held_out, held_out_rows
from smollm2.protocol.run_config import SPREAD, ResolvedConfig
from smollm2.runs.conditions import FINAL_TEST, FINAL_VALIDATION, Conditions
from smollm2.runs.manifest import Role
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
    """What the model must beat: the test losses of n-gram models of as many training tokens. None
    if it is unknown how many it has seen, as it started with the weights of another run."""
    if run.manifest["started_from"] and not start_step(run):
        return None
    floors = data.floors_at(run.protocol.steps * run.protocol.tokens_per_step)
    return dataclasses.asdict(floors) if floors else None
