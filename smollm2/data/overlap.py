"""Whether held-out documents are in the text that a model was trained on."""

import hashlib
from collections.abc import Iterator

import numpy as np

from smollm2.data.sharded_tokens import Tokens

AT_A_TIME = 2**22  # tokens in memory


def documents_also_in(held_out: Tokens, train: Tokens, end_of_text: int) -> int:
    """How many documents of `held_out` are, whole and token by token, documents of `train`.

    A part of a document counts only where it is one by itself.

    Args:
        held_out, train: tokens of one tokenizer and dtype, each document with its `end_of_text`.
    """
    seen = set(_digests(train, end_of_text))
    return sum(digest in seen for digest in _digests(held_out, end_of_text))


def _digests(tokens: Tokens, end_of_text: int) -> Iterator[bytes]:
    """A hash of each document, with its end; of what follows the last end, none."""
    digest = hashlib.sha256()
    for first in range(0, len(tokens), AT_A_TIME):
        part = tokens[first : first + AT_A_TIME]
        start = 0
        for end in (np.flatnonzero(part == end_of_text) + 1).tolist():
            digest.update(part[start:end].tobytes())
            yield digest.digest()
            digest, start = hashlib.sha256(), end
        digest.update(part[start:].tobytes())
