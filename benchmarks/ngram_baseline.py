"""Test losses of n-gram models counted on the tokens that a run trains on: what a model must beat.

    python benchmarks/ngram_baseline.py novels.jsonl.gz --tokenizer train:4096 --tokens 1024000
    python benchmarks/ngram_baseline.py novels.jsonl.gz --tokenizer DIR --tokens 10240 --seq-len 512

The corpus is prepared as for a run, by default with the tokenizer and the lengths of nano scale.
The n-grams are counted on the windows that a run with `--seed` draws, and scored on the first
windows of the test split. Like the model, they see no token before their window.
The models are those of `smollm2.data.ngram`, which `prepare` counts on windows
spread over the training split and scores on all of the test split.
"""

import argparse

import numpy as np

from smollm2.data import TokenData, batch, prepare, window_count, windows
from smollm2.data.ngram import kneser_ney


def grams_in(inputs: np.ndarray, targets: np.ndarray, order: int, vocab_size: int) -> np.ndarray:
    """The key of the n-gram that ends at each target, `int64 [rows * seq_len]`; the token
    `vocab_size` stands for the start of a window."""
    whole = np.concatenate([inputs, targets[:, -1:]], axis=1)
    whole = np.pad(whole, ((0, 0), (1, 0)), constant_values=vocab_size)
    length = targets.shape[1]
    keys = np.zeros(targets.shape, dtype=np.int64)
    for i in range(order):
        keys = keys * (vocab_size + 1) + whole[:, 3 - order + i :][:, :length]
    return keys.ravel()


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
        found.append(float(-np.log(kneser_ney(grams, asked, order, data.vocab_size)).mean()))
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
