"""The tokens of a training step and of an evaluation.

The batch of a step is computed, not iterated: resuming, changing the batch size or asking for the
steps out of order gives the same samples.
"""

import hashlib
import mmap
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from smollm2.data.permutation import ROUNDS, permuted
from smollm2.data.sharded_tokens import ShardedTokens, Tokens
from smollm2.errors import RunError, UserError


def batch(
    tokens: Tokens,
    fingerprint: str,
    seed: int,
    step: int,
    rows: int,
    seq_len: int,
    order: str = "feistel",
) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets of training step `step` (from 0), each `int64 [rows, seq_len]`.

    Sample number `step * rows + r` fills row `r`. An epoch visits all windows of `tokens` once. Its
    order and offset follow from `fingerprint`, `seed` and the number of the epoch. Targets are the
    inputs shifted by one token.

    Args:
        order: one of `ORDERS`: `feistel`, or `shuffled` as in older runs.

    Raises:
        UserError: fewer than `2 * seq_len` tokens.
        RunError: as `require_uncut`.
    """
    count = _windows_per_epoch(len(tokens), seq_len)
    epochs, places = np.divmod(np.arange(step * rows, (step + 1) * rows), count)
    starts = np.empty(rows, dtype=np.int64)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        key = f"{fingerprint}/{seed}/{epoch}"
        offset, numbers = ORDERS[order](key, places[here], count)
        starts[here] = offset % seq_len + numbers * seq_len
    return _cut(tokens, starts, seq_len)


def window_count(tokens: Tokens, seq_len: int, n_tokens: int | None = None) -> int:
    """How many consecutive windows of `seq_len` an evaluation reads from the start of `tokens`.

    The first `n_tokens` (None: all) rounded down to whole windows, at least one.

    Raises:
        UserError: fewer than `seq_len + 1` tokens.
    """
    available = (len(tokens) - 1) // seq_len
    if available < 1:
        raise UserError(
            f"The evaluation split has {len(tokens):,} tokens, too few for one window of "
            f"{seq_len:,}: expected at least {seq_len + 1:,}. Use more text."
        )
    return available if n_tokens is None else min(max(1, n_tokens // seq_len), available)


def spread_windows(total: int, count: int) -> list[int]:
    """The numbers of `count` windows spread evenly over `total`, to cover as many documents as
    possible."""
    return [i * total // count for i in range(count)]


def windows(tokens: Tokens, seq_len: int, numbers: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets, each `int64 [len(numbers), seq_len]`, of the windows `numbers`."""
    return _cut(tokens, np.asarray(numbers, dtype=np.int64) * seq_len, seq_len)


def epochs(n_train_tokens: int, seq_len: int, n_tokens: int) -> float:
    """How many times training on `n_tokens` reads a split of `n_train_tokens`."""
    return n_tokens / (_windows_per_epoch(n_train_tokens, seq_len) * seq_len)


def require_uncut(tokens: Tokens) -> None:
    """Raise `RunError` if the file that `tokens` is a memory map of has been cut since.

    Reading past its end would kill the process with SIGBUS. A file that is deleted or replaced
    stays whole in its map. Shards are mapped for each read, which detects a cut.
    """
    if isinstance(tokens, ShardedTokens):
        return
    mapped = tokens.base
    if isinstance(mapped, mmap.mmap) and mapped.size() < tokens.nbytes:
        path = Path(str(getattr(tokens, "filename", "")))
        raise RunError(
            f"Something cut {path.name} of the tokens in {path.parent.name!r} to "
            f"{mapped.size():,} bytes ({tokens.nbytes:,} expected) while they were in use. Repeat "
            "the command, or resume the run, with `data` to prepare the tokens again."
        )


def _windows_per_epoch(n_tokens: int, seq_len: int) -> int:
    # An epoch may start up to seq_len - 1 tokens late and needs one target past its last window.
    if n_tokens < 2 * seq_len:
        raise UserError(
            f"The training split has {n_tokens:,} tokens, too few for windows of {seq_len:,}: "
            f"expected at least {2 * seq_len:,}. Use a shorter `seq_len` or more text."
        )
    return n_tokens // seq_len - 1


def _feistel(key: str, places: np.ndarray, count: int) -> tuple[int, np.ndarray]:
    raw = hashlib.shake_256(key.encode()).digest(8 * (1 + ROUNDS))
    offset, *keys = np.frombuffer(raw, dtype="<u8").astype(np.uint64)
    return int(offset), permuted(places, count, np.array(keys))


def _shuffled(key: str, places: np.ndarray, count: int) -> tuple[int, np.ndarray]:
    offset, numbers = _shuffle(key, count)
    return offset, numbers[places]


@lru_cache(maxsize=4)
def _shuffle(key: str, count: int) -> tuple[int, np.ndarray]:
    """A random 64-bit offset and a permutation of `count` windows, 8 bytes each."""
    digest = hashlib.sha256(key.encode()).digest()[:16]
    # The raw stream of Philox is the same in each numpy version; Generator.permutation is not.
    raw = np.random.Philox(key=int.from_bytes(digest, "little")).random_raw(count + 1)
    return int(raw[0]), np.argsort(raw[1:], kind="stable")


# From a key, the places of an epoch and the number of its windows: a random 64-bit offset, and the
# windows at these places.
ORDERS: dict[str, Callable[[str, np.ndarray, int], tuple[int, np.ndarray]]] = {
    "shuffled": _shuffled,
    "feistel": _feistel,
}


def _cut(tokens: Tokens, starts: np.ndarray, seq_len: int) -> tuple[np.ndarray, np.ndarray]:
    require_uncut(tokens)
    taken = tokens[starts[:, None] + np.arange(seq_len + 1)].astype(np.int64)
    return taken[:, :-1].copy(), taken[:, 1:].copy()
