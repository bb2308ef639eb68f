"""Losses of n-gram models counted on training tokens: what a model must beat to be judged.

Smoothing is interpolated Kneser-Ney (Chen and Goodman 1999, Computer Speech and Language 13,
section 2.7) with one discount, 0.75. The last level is uniform over the vocabulary, so no token has
the probability zero. An n-gram is one number, its key: the digits are its tokens, in base
`vocab_size + 1`. The token `vocab_size` is in no text and may stand for a start.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from smollm2.data.sharded_tokens import Tokens

DISCOUNT = 0.75
WINDOW = 256  # consecutive tokens that are counted together
FEWEST_TOKENS = 256  # of the smallest model
# Counting more would take longer than it tells, and scoring more would not change three digits.
MOST_COUNTED = 2**27
MOST_SCORED = 2**22
AT_ONCE = 2**23  # trigrams in memory, 8 bytes each, several times


@dataclass(frozen=True)
class Floors:
    """Losses in nats/token on test text of models counted on `tokens` training tokens.

    Args:
        unigram: of the shares of single tokens.
        trigram: of the tokens after each pair of tokens.
    """

    tokens: int
    unigram: float
    trigram: float


def kneser_ney(keys: np.ndarray, asked: np.ndarray, order: int, vocab_size: int) -> np.ndarray:
    """P(last token | the others) of each n-gram in `asked`, `float64 [m]`.

    Args:
        keys: of the n-grams to count, `int64 [n]`, repeated ones as often as they occur.
        asked: `int64 [m]`.
        order: tokens of an n-gram, 0 to 3.
        vocab_size: tokens are below it.
    """
    if order == 0:
        return np.full(len(asked), 1 / vocab_size)
    base = vocab_size + 1
    grams, counts = np.unique(keys, return_counts=True)
    own, rest = discounted(grams, counts, asked, base)
    # Of lower order a gram counts once per token before it, however often it occurs.
    place = base ** (order - 1)
    return own + rest * kneser_ney(grams % place, asked % place, order - 1, vocab_size)


def discounted(
    grams: np.ndarray, counts: np.ndarray, asked: np.ndarray, base: int
) -> tuple[np.ndarray, np.ndarray]:
    """One level of the smoothing: P = own + rest * P of lower order, for each n-gram in `asked`.

    Args:
        grams: sorted keys without repetition.
        counts: of each.
    """
    before = grams // base  # all tokens but the last; sorted too
    starts = np.flatnonzero(np.diff(before, prepend=-1))
    contexts, asked_context = before[starts], asked // base
    total = looked_up(asked_context, contexts, np.add.reduceat(counts, starts))
    followers = looked_up(asked_context, contexts, np.diff(starts, append=len(grams)))
    own = np.maximum(looked_up(asked, grams, counts) - DISCOUNT, 0)
    seen = np.maximum(total, 1)
    return own / seen, np.where(total > 0, DISCOUNT * followers / seen, 1.0)


def looked_up(wanted: np.ndarray, keys: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The values of the wanted keys, 0 where there is none; `keys` are sorted."""
    places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[places] == wanted, values[places], 0)


def count_floors(
    train: Tokens,
    test: Tokens,
    vocab_size: int,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Floors, ...]:
    """The floors for 256, 512, 1024, ... and all training tokens, at most 2^27 of them.

    Fewer tokens than all are taken in windows spread over the split, and so is a test split of more
    than 2^22. Memory does not grow with the text: trigrams are counted in parts, those with the
    same token in the middle together, as both orders of smoothing need only these.

    Args:
        train, test: token ids, unsigned `[n]`.
        on_progress: called with the tokens counted so far and in all, over all sizes.

    Returns:
        In order of size; empty if a split has fewer than three tokens, or the vocabulary is so
        large (2^21) that a trigram does not fit into 64 bits.
    """
    if not can_count(train, test, vocab_size):
        return ()
    asked, times = Spread.over(test, MOST_SCORED).counts(vocab_size)
    whole = Spread.over(train, MOST_COUNTED)
    sizes = [FEWEST_TOKENS << i for i in range(64) if FEWEST_TOKENS << i < whole.n_tokens]
    samples = [Spread.over(train, size) for size in sizes] + [whole]
    total = sum(sample.n_tokens for sample in samples)
    found: list[Floors] = []
    done = 0
    for sample in samples:
        on_progress(done, total)
        found.append(floors_from(sample, asked, times, vocab_size))
        done += sample.n_tokens
    on_progress(total, total)
    return tuple(found)


def floors_on_windows(
    train: Tokens,
    test: Tokens,
    vocab_size: int,
    *,
    seq_len: int,
    numbers: Sequence[int],
    n_tokens: int,
) -> Floors | None:
    """The floors for `n_tokens` training tokens, or all of them, on windows of the test split.

    Of more than 2^22 tokens a part is scored, in windows at even distances. Other than the model,
    a trigram knows the token before a window. None where `count_floors` finds none.

    Args:
        train, test: token ids, unsigned `[n]`.
        seq_len: tokens of a window.
        numbers: of the windows, as in `data.windows`.
    """
    if not can_count(train, test, vocab_size):
        return None
    every = -(-len(numbers) * seq_len // MOST_SCORED)
    starts = 1 + np.asarray(numbers[::every], dtype=np.int64) * seq_len
    asked, times = Spread(test, seq_len, starts).counts(vocab_size)
    sample = Spread.over(train, min(max(n_tokens, FEWEST_TOKENS), MOST_COUNTED))
    return floors_from(sample, asked, times, vocab_size)


def can_count(train: Tokens, test: Tokens, vocab_size: int) -> bool:
    """Whether splits have a trigram, and it fits into 64 bits."""
    return min(len(train), len(test)) >= 3 and (vocab_size + 1) ** 3 <= 2**63


def floors_from(sample: "Spread", asked: np.ndarray, times: np.ndarray, vocab_size: int) -> Floors:
    """The floors for the training tokens of `sample`.

    Args:
        asked: keys of the trigrams of the test text, `int64 [m]`.
        times: how often each occurs there.
    """
    chances = (
        unigram_chances(sample, asked, vocab_size),
        trigram_chances(sample, asked, vocab_size),
    )
    losses = [-float(times @ np.log(each)) / int(times.sum()) for each in chances]
    return Floors(sample.n_tokens, *(round(loss, 6) for loss in losses))


def floors_between(floors: Sequence[Floors], n_tokens: int) -> Floors | None:
    """The floors for `n_tokens` training tokens, interpolated in the logarithm of their number.

    Below the smallest and above the largest size, those of that size; None if `floors` is empty.
    """
    if not floors:
        return None
    sizes = [each.tokens for each in floors]
    n_tokens = min(max(n_tokens, sizes[0]), sizes[-1])

    def at(losses: list[float]) -> float:
        return float(np.interp(math.log(n_tokens), np.log(sizes), losses))

    unigram, trigram = [each.unigram for each in floors], [each.trigram for each in floors]
    return Floors(n_tokens, at(unigram), at(trigram))


@dataclass(frozen=True)
class Spread:
    """Windows of `length` tokens at even distances, whose n-grams are counted.

    Args:
        starts: the first token of each, `int64 [n]`; two tokens stand before it. Before the second
            token of the text that is its first one, twice.
    """

    tokens: Tokens
    length: int
    starts: np.ndarray

    @classmethod
    def over(cls, tokens: Tokens, n_tokens: int) -> "Spread":
        """Windows with about `n_tokens` of `tokens`; as many as there are if they are fewer."""
        length = min(WINDOW, len(tokens) - 2)
        total = (len(tokens) - 2) // length
        count = max(1, min(total, n_tokens // length))
        middles = (2 * np.arange(count) + 1) * total // (2 * count)
        return cls(tokens, length, 2 + middles * length)

    @property
    def n_tokens(self) -> int:
        return len(self.starts) * self.length

    def rows(self) -> Iterator[np.ndarray]:
        """The windows with the two tokens before each, `int64 [rows, length + 2]`, some at a
        time."""
        step = max(1, AT_ONCE // 8 // self.length)
        places = np.arange(-2, self.length)
        for first in range(0, len(self.starts), step):
            starts = self.starts[first : first + step, None]
            yield self.tokens[np.maximum(starts + places, 0)].astype(np.int64)

    def counts(self, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
        """The keys of the trigrams that end in the windows, and how often each does."""
        keys = np.concatenate(list(self.trigrams(vocab_size)))
        return np.unique(keys, return_counts=True)

    def trigrams(self, vocab_size: int, part: int = 0, parts: int = 1) -> Iterator[np.ndarray]:
        """Keys of the trigrams that end in the windows, some at a time; only those whose token in
        the middle leaves `part` when divided by `parts`."""
        base = vocab_size + 1
        for rows in self.rows():
            first, middle, last = rows[:, :-2], rows[:, 1:-1], rows[:, 2:]
            keys = (first * base + middle) * base + last
            yield keys[middle % parts == part] if parts > 1 else keys.ravel()


def unigram_chances(sample: Spread, asked: np.ndarray, vocab_size: int) -> np.ndarray:
    """P(last token) of each trigram in `asked`, as `kneser_ney` of order 1."""
    base = vocab_size + 1
    counts = np.zeros(base, dtype=np.int64)
    for rows in sample.rows():
        counts += np.bincount(rows[:, 2:].ravel(), minlength=base)
    return last_level(counts, asked % base, vocab_size)


def trigram_chances(sample: Spread, asked: np.ndarray, vocab_size: int) -> np.ndarray:
    """P(last token | two before) of each trigram in `asked`, as `kneser_ney` of order 3."""
    base, parts = vocab_size + 1, -(-sample.n_tokens // AT_ONCE)
    own, rest = np.zeros(len(asked)), np.ones(len(asked))
    ends = np.zeros(base, dtype=np.int64)
    asked_part = asked // base % base % parts
    for part in range(parts):
        grams, counts = np.unique(
            np.concatenate(list(sample.trigrams(vocab_size, part, parts))), return_counts=True
        )
        if not len(grams):
            continue
        here = np.flatnonzero(asked_part == part)
        own_three, rest_three = discounted(grams, counts, asked[here], base)
        pairs, befores = np.unique(grams % base**2, return_counts=True)
        own_two, rest_two = discounted(pairs, befores, asked[here] % base**2, base)
        own[here], rest[here] = own_three + rest_three * own_two, rest_three * rest_two
        ends += np.bincount(pairs % base, minlength=base)
    return own + rest * last_level(ends, asked % base, vocab_size)


def last_level(counts: np.ndarray, asked: np.ndarray, vocab_size: int) -> np.ndarray:
    """The level of single tokens.

    Args:
        counts: of each token, `int64 [vocab_size + 1]`.
        asked: tokens.
    """
    seen = np.flatnonzero(counts)
    own, rest = discounted(seen, counts[seen], asked, vocab_size + 1)
    return own + rest / vocab_size
