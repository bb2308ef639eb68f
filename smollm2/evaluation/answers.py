"""The answers to multiple-choice questions: of one as it is scored, and of many as arrays.

Reading them back needs no torch: a comparison reads those of hundreds of runs.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class ItemScore:
    """A model's log-likelihoods of the choices of one item. Tuples have an entry per choice.

    Args:
        item: the index of the item.
        question: the item's fingerprint.
        gold: the index of the right choice.
        log_likelihoods: of the continuation after its context, in nats.
        greedy: whether every token of the continuation was the model's first choice.
        characters: in the continuation, without the space between it and its context.
        n_bytes: UTF-8 bytes of the scored text, with all spaces.
    """

    derived: ClassVar[tuple[str, ...]] = ("choice", "choice_norm")  # written, never read

    item: int
    question: str
    gold: int
    log_likelihoods: tuple[float, ...]
    greedy: tuple[bool, ...]
    characters: tuple[int, ...]
    n_bytes: tuple[int, ...]

    @property
    def key(self) -> tuple[int]:
        return (self.item,)

    @property
    def choice(self) -> int:
        """The most likely choice; the first of equals."""
        return first_largest(self.log_likelihoods)

    @property
    def choice_norm(self) -> int:
        """The most likely choice by log-likelihood per character; the first of equals."""
        pairs = zip(self.log_likelihoods, self.characters, strict=True)
        return first_largest([nats / n if n else -math.inf for nats, n in pairs])

    @property
    def bits_per_byte(self) -> float:
        """The negative log-likelihood of the right choice in bits, per byte of its text."""
        return -self.log_likelihoods[self.gold] / math.log(2) / self.n_bytes[self.gold]

    def value(self, metric: str) -> float:
        """The item's term in the mean of `acc`, `acc_norm` or `bits_per_byte`."""
        if metric == "bits_per_byte":
            return self.bits_per_byte
        return float({"acc": self.choice, "acc_norm": self.choice_norm}[metric] == self.gold)


def first_largest(values: Sequence[float]) -> int:
    """The index of the largest value; the first of equals."""
    return max(range(len(values)), key=values.__getitem__)


@dataclass(frozen=True)
class Answers:
    """What `ItemScore` has of one item, of several in order.

    Args:
        gold: `int64 [n]`.
        log_likelihoods: `float64 [n, most choices]`; minus infinity where an item has fewer.
        characters, n_bytes: the same, but 0 where an item has fewer choices.
    """

    gold: NDArray[np.int64]
    log_likelihoods: Numbers
    characters: Numbers
    n_bytes: Numbers

    def values(self, metric: str) -> list[float]:
        """`ItemScore.value` of each."""
        nats, rows = self.log_likelihoods, np.arange(len(self.gold))
        if metric == "bits_per_byte":
            bits: Numbers = -nats[rows, self.gold] / math.log(2) / self.n_bytes[rows, self.gold]
            return bits.tolist()
        least = np.full_like(nats, -math.inf)
        scores = {
            "acc": nats,
            "acc_norm": np.divide(nats, self.characters, out=least, where=self.characters > 0),
        }
        right = scores[metric].argmax(axis=1) == self.gold  # the first of equals
        return right.astype(float).tolist()
