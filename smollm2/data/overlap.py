"""Whether held-out documents are in the text that a model was trained on."""

import hashlib
from collections.abc import Iterator

import numpy as np


def documents_also_in(held_out: np.ndarray, train: np.ndarray, end_of_text: int) -> int:
    """How many documents of `held_out` are, whole and token by token, documents of `train`.

    A part of a document counts only where it is one by itself.

    Args:
        held_out, train: tokens of one tokenizer and dtype, each document with its `end_of_text`.
    """
    seen = set(_digests(train, end_of_text))
    return sum(digest in seen for digest in _digests(held_out, end_of_text))


def _digests(tokens: np.ndarray, end_of_text: int) -> Iterator[bytes]:
    """A hash of each document, with its end; of what follows the last end, none."""
    start = 0
    for end in (np.flatnonzero(tokens == end_of_text) + 1).tolist():
        yield hashlib.sha256(tokens[start:end].tobytes()).digest()
        start = end
