"""The text that calibrates a quantization: never the text that it is judged by."""

from typing import NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from smollm2.data import (
    TokenData,
    documents,
    encode_text,
    source_name,
    spread_windows,
    window_count,
    windows,
)
from smollm2.data.sharded_tokens import Tokens
from smollm2.errors import UserError

CALIBRATION_TOKENS = 16_384
BUILTIN = "builtin"
FEWEST_WINDOWS = 4
MOST_OF_A_DOCUMENT = 1024  # tokens, so that a few long documents do not decide
CHARACTERS = 16  # of a token, at most: so much of a long document is encoded
COMPARED = 64  # tokens in a row that the text does not share with a judged window
STEP = 16  # between the places of a window that are looked for


class Calibration(NamedTuple):
    """Windows (W, T) of token ids, and the names of the texts that they are from."""

    windows: Tensor
    sources: tuple[str, ...]


def calibration_text(
    data: TokenData, tokenizer: Tokenizer, judged: np.ndarray, source: str | None
) -> Calibration:
    """About `CALIBRATION_TOKENS` tokens: those of `source`, by default half of them from the
    training split of `data` and half from the built-in text, which is of another kind.

    Args:
        judged: the windows (W, T) of token ids that the quantization is judged by.

    Raises:
        UserError: the text is too short, cannot be read, or has a part of the judged text.
    """
    seq_len = judged.shape[1]
    if source is not None:
        try:
            tokens = tokens_from(source, tokenizer, data.end_of_text, CALIBRATION_TOKENS)
        except UserError as error:
            raise UserError(f"--calibration {source_name(source)}: {error}") from None
        if shares_text(tokens, judged):
            raise UserError(
                f"--calibration {source_name(source)} has a part of the text on which the "
                "quantized model is judged; give another text, or omit --calibration."
            )
        return calibration_of({source_name(source): tokens}, seq_len)
    parts = {data.source: own_text(data, judged, CALIBRATION_TOKENS)}
    if data.source != BUILTIN:
        other = tokens_from(BUILTIN, tokenizer, data.end_of_text, CALIBRATION_TOKENS // 2)
        if not shares_text(other, judged):
            half = own_text(data, judged, CALIBRATION_TOKENS // 2)
            parts = {data.source: half, source_name(BUILTIN): other}
    return calibration_of({name: tokens for name, tokens in parts.items() if len(tokens)}, seq_len)


def own_text(data: TokenData, judged: np.ndarray, n_tokens: int) -> np.ndarray:
    """Windows spread over the training split, without those that repeat judged text."""
    seq_len = judged.shape[1]
    found = spread(data.train, seq_len, n_tokens).reshape(-1, seq_len)
    return found[[not shares_text(window, judged) for window in found]].reshape(-1)


def calibration_of(parts: dict[str, np.ndarray], seq_len: int) -> Calibration:
    """Whole windows of each part.

    Raises:
        UserError: there are fewer than `FEWEST_WINDOWS`.
    """
    cut = [tokens[: len(tokens) // seq_len * seq_len] for tokens in parts.values()]
    found = np.concatenate([np.empty(0, np.int64), *cut]).reshape(-1, seq_len)
    if len(found) < FEWEST_WINDOWS:
        what = f"The calibration text {' and '.join(parts)} has {len(found)} windows"
        if not parts:
            what = "All of the calibration text repeats judged text: it has no window"
        raise UserError(
            f"{what} of {seq_len} tokens, and {FEWEST_WINDOWS} are needed; give a longer one with "
            "--calibration, or choose --method rtn or hqq."
        )
    return Calibration(torch.from_numpy(found.astype(np.int64)), tuple(parts))


def spread(tokens: Tokens, seq_len: int, n_tokens: int) -> np.ndarray:
    """Windows at even distances, one after the other."""
    if len(tokens) <= seq_len:
        return tokens[:0]
    count = window_count(tokens, seq_len, n_tokens)
    inputs, _ = windows(tokens, seq_len, spread_windows(window_count(tokens, seq_len), count))
    return inputs.reshape(-1)


def tokens_from(source: str, tokenizer: Tokenizer, end_of_text: int, n_tokens: int) -> np.ndarray:
    """The beginnings of a text's documents, together so many tokens.

    Raises:
        UserError: the text cannot be read or encoded.
    """
    found: list[int] = []
    for text in documents(source):
        beginning = encode_text(tokenizer, text[: CHARACTERS * MOST_OF_A_DOCUMENT])
        found += [*beginning[:MOST_OF_A_DOCUMENT], end_of_text]
        if len(found) >= n_tokens:
            break
    return np.array(found[:n_tokens], dtype=np.int64)


def shares_text(tokens: np.ndarray, judged: np.ndarray) -> bool:
    """Whether `COMPARED` tokens in a row of a judged window, at every `STEP`-th place of it, occur
    in `tokens`: a shared stretch of 79 tokens is found wherever it is."""
    n = min(COMPARED, judged.shape[1])
    if len(tokens) < n:
        return False
    rows = np.lib.stride_tricks.sliding_window_view(judged.astype(tokens.dtype), n, axis=1)
    wanted = {run.tobytes() for row in rows[:, ::STEP] for run in row}
    runs = np.lib.stride_tricks.sliding_window_view(tokens, n)
    return any(run.tobytes() in wanted for run in runs)
