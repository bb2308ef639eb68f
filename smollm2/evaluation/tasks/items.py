"""A multiple-choice question as a model sees it."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass

from smollm2.errors import UserError


@dataclass(frozen=True)
class Item:
    """One question. Choice i is scored by the likelihood of `continuations[i]` after `contexts[i]`.

    Most tasks have one context for all choices; WinoGrande has one continuation for all.

    Args:
        contexts, continuations: one per choice; a continuation starts with the space that
            separates it from its context.
        gold: the index of the right choice.

    Raises:
        UserError: fewer than two choices, a gold out of range, or text that is not valid Unicode.
    """

    contexts: tuple[str, ...]
    continuations: tuple[str, ...]
    gold: int

    def __post_init__(self) -> None:
        n = len(self.continuations)
        if n < 2 or len(self.contexts) != n:
            raise UserError(f"expected at least 2 choices, found {n}")
        if not 0 <= self.gold < n:
            raise UserError(f"the label is out of range: choice {self.gold + 1} of {n}")
        try:
            "".join(self.contexts + self.continuations).encode()
        except UnicodeEncodeError:
            raise UserError("the text holds half of a surrogate pair") from None

    @property
    def fingerprint(self) -> str:
        """8 hex digits of SHA-256 over the question."""
        content = json.dumps([self.contexts, self.continuations, self.gold])
        return hashlib.sha256(content.encode()).hexdigest()[:8]


def question(context: str, choices: Iterable[str], gold: int) -> Item:
    """An item whose choices share a context."""
    continuations = tuple(" " + choice for choice in choices)
    return Item((context,) * len(continuations), continuations, gold)


def items_fingerprint(questions: Iterable[str]) -> str:
    """16 hex digits of SHA-256 over the fingerprints of items, in order."""
    return hashlib.sha256(" ".join(questions).encode()).hexdigest()[:16]
