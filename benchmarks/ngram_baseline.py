"""Test losses of n-gram models counted on the tokens that a run trains on: what a model must beat.

    python benchmarks/ngram_baseline.py novels.jsonl.gz --tokenizer train:4096 --tokens 1024000
    python benchmarks/ngram_baseline.py novels.jsonl.gz --tokenizer DIR --tokens 10240 --seq-len 512

The corpus is prepared as for a run, by default with the tokenizer and the lengths of nano scale.
The n-grams are counted on the windows that a run with `--seed` draws, and scored on the first
windows of the test split. Like the model, they see no token before their window.

Smoothing is interpolated Kneser-Ney (Chen and Goodman 1999, section 2.7) with one discount, 0.75.
The last level is uniform over the vocabulary, so no token has the probability zero.
"""

import argparse

import numpy as np

from smollm2.data import TokenData, batch, prepare, window_count, windows

DISCOUNT = 0.75


def probabilities(grams: np.ndarray, asked: np.ndarray, vocab_size: int) -> np.ndarray:
    """P(last token | the others) of each row of `asked`, `float64 [m]`.

    Args:
        grams: n-grams to count, `int64 [n, order]`, repeated ones as often as they occur.
        asked: `int64 [m, order]`.
        vocab_size: tokens are below it; `vocab_size` itself stands for the start of a window.
    """
    if grams.shape[1] == 0:
        return np.full(len(asked), 1 / vocab_size)
    keys, counts = np.unique(key_of(grams, vocab_size), return_counts=True)
    places = (vocab_size + 1) ** np.arange(grams.shape[1])[::-1]
    distinct = keys[:, None] // places % (vocab_size + 1)
    # Of lower order a gram counts once per token before it, however often it occurs.
    lower = probabilities(distinct[:, 1:], asked[:, 1:], vocab_size)
    contexts, context_of = np.unique(key_of(distinct[:, :-1], vocab_size), return_inverse=True)
    asked_contexts = key_of(asked[:, :-1], vocab_size)
    count = looked_up(key_of(asked, vocab_size), keys, counts)
    total = looked_up(asked_contexts, contexts, np.bincount(context_of, weights=counts))
    followers = looked_up(asked_contexts, contexts, np.bincount(context_of))
    own = np.maximum(count - DISCOUNT, 0) + DISCOUNT * followers * lower
    return np.where(total > 0, own / np.maximum(total, 1), lower)


def key_of(grams: np.ndarray, vocab_size: int) -> np.ndarray:
    """One number per row, `int64 [n]`, in the order of the rows; enough for three tokens."""
    keys = np.zeros(len(grams), dtype=np.int64)
    for column in grams.T:
        keys = keys * (vocab_size + 1) + column
    return keys


def looked_up(wanted: np.ndarray, keys: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The values of the wanted keys, 0 where there is none; `keys` are sorted."""
    places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[places] == wanted, values[places], 0)


def grams_in(inputs: np.ndarray, targets: np.ndarray, order: int, vocab_size: int) -> np.ndarray:
    """The n-gram that ends at each target, `int64 [rows * seq_len, order]`."""
    whole = np.concatenate([inputs, targets[:, -1:]], axis=1)
    whole = np.pad(whole, ((0, 0), (1, 0)), constant_values=vocab_size)
    length = targets.shape[1]
    columns = [whole[:, 3 - order + i :][:, :length] for i in range(order)]
    return np.stack([column.ravel() for column in columns], axis=1)


def losses(
    data: TokenData, n_tokens: int, test_tokens: int, seq_len: int, seed: int
) -> list[float]:
    """Nats/token of the models of order 1, 2 and 3."""
    rows = n_tokens // seq_len
    counted = batch(data.train, data.fingerprint, seed, 0, rows, seq_len)
    numbers = range(window_count(data.test, seq_len, test_tokens))
    scored = windows(data.test, seq_len, numbers)
    found = []
    for order in (1, 2, 3):
        grams, asked = (grams_in(*pair, order, data.vocab_size) for pair in (counted, scored))
        found.append(float(-np.log(probabilities(grams, asked, data.vocab_size)).mean()))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("corpus")
    parser.add_argument("--tokenizer", default="train:4096")
    parser.add_argument("--tokens", type=int, default=1_024_000, help="that a run trains on")
    parser.add_argument("--test-tokens", type=int, default=131_072)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    data = prepare(options.corpus, options.tokenizer)
    found = losses(data, options.tokens, options.test_tokens, options.seq_len, options.seed)
    for name, loss in zip(("unigram", "bigram", "trigram"), found, strict=True):
        print(f"{name}: {loss:.3f} nats/token")


if __name__ == "__main__":
    main()
