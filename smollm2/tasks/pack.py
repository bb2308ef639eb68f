"""Questions as rows of tokens.

The choices of a question become one row, in which what they have in common at the start stands
once:

    [ common | rest of choice 1 | rest of choice 2 | ... ]

A token is to attend to what is common and to its own choice, at the position that it has in its
own sequence; its hidden state is then the one that it would have there alone.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from smollm2.data import end_of_text_id
from smollm2.errors import UserError
from smollm2.tasks.items import Item

if TYPE_CHECKING:
    from tokenizers import Tokenizer

COMMON, PADDING = -1, -2  # instead of a choice, whose number is 0 or more


@dataclass(frozen=True)
class Encoded:
    """A context and a continuation as tokens, of which the last `n_scored` are scored.

    n_bytes: of the text of those, in UTF-8.
    """

    tokens: list[int]
    n_scored: int
    n_bytes: int


@dataclass(frozen=True)
class PackedItem:
    """An item as a row of tokens; the last token of a choice is only a target.

    index: the item's.
    tokens, positions, owners: one of each a token; the owner is the number of the choice that the
        token belongs to, or COMMON.
    scored, targets: choice after choice, which tokens of the row predict, and what.
    n_scored, n_bytes: for each choice, how many those are, and the bytes of their text.
    """

    index: int
    tokens: list[int]
    positions: list[int]
    owners: list[int]
    scored: list[int]
    targets: list[int]
    n_scored: list[int]
    n_bytes: list[int]


def pack(index: int, item: Item, tokenizer: "Tokenizer", max_len: int) -> PackedItem:
    """Tokenize item number `index` for a model that reads up to `max_len` tokens.

    A longer choice loses tokens on its left, and shares with the others what is still the same.

    Raises:
        UserError: a continuation has no tokens of its own, or alone more than `max_len`.
    """
    pairs = zip(item.contexts, item.continuations, strict=True)
    choices = [encode(tokenizer, *pair) for pair in pairs]
    n_scored = [choice.n_scored for choice in choices]
    if max(n_scored) > max_len:
        raise UserError(
            f"A choice of item {index} has {max(n_scored)} tokens, more than the context length "
            f"{max_len}; use a model with a longer one."
        )
    if min(n_scored) < 1:
        raise UserError(f"A choice of item {index} adds no token to its context.")

    sequences = [choice.tokens[-(max_len + 1) :] for choice in choices]
    start = common_start([tokens[:-1] for tokens in sequences])
    row, positions, owners = sequences[0][:start], list(range(start)), [COMMON] * start
    scored, targets = [], []
    for number, (tokens, n) in enumerate(zip(sequences, n_scored, strict=True)):
        end, shift = len(tokens) - 1, len(row) - start
        row += tokens[start:end]
        positions += range(start, end)
        owners += [number] * (end - start)
        scored += [place if place < start else place + shift for place in range(end - n, end)]
        targets += tokens[-n:]
    n_bytes = [choice.n_bytes for choice in choices]
    return PackedItem(index, row, positions, owners, scored, targets, n_scored, n_bytes)


def encode(tokenizer: "Tokenizer", context: str, continuation: str) -> Encoded:
    """Tokens as lm-evaluation-harness makes them.

    Spaces that end the context count as the continuation's. Both are encoded together and cut
    where the context alone ends; without a context the end of a text stands in for it. As in
    training nothing is added to the text, whatever template the tokenizer brings.
    """

    def ids(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False).ids

    start = context.rstrip()
    text = context[len(start) :] + continuation
    if start:
        before = ids(start)
        scored = ids(start + text)[len(before) :]
    else:
        before, scored = [end_of_text_id(tokenizer)], ids(text)
    return Encoded(before + scored, len(scored), len(text.encode()))


def common_start(sequences: list[list[int]]) -> int:
    """How many tokens all `sequences` start with."""
    for place, tokens in enumerate(zip(*sequences, strict=False)):
        if len(set(tokens)) > 1:
            return place
    return min(map(len, sequences))


def batches(
    items: Iterable[PackedItem], *, max_tokens: float = math.inf, max_items: float = math.inf
) -> Iterator[list[PackedItem]]:
    """Items of about the same length together, the longest first.

    A batch has at most `max_tokens` tokens, padding included, and at most `max_items` items, but
    at least one.
    """
    batch: list[PackedItem] = []
    for item in sorted(items, key=lambda item: -len(item.tokens)):
        size = len(batch) + 1
        if batch and (size > max_items or size * len(batch[0].tokens) > max_tokens):
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch


def stack(rows: list[PackedItem], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens and positions (B, T) and the mask (B, T, T): True where a token sees another."""
    width = max(len(row.tokens) for row in rows)

    def padded(columns: Iterable[list[int]], fill: int) -> Tensor:
        return torch.tensor([c + [fill] * (width - len(c)) for c in columns], device=device)

    tokens = padded((row.tokens for row in rows), 0)
    positions = padded((row.positions for row in rows), 0)
    owners = padded((row.owners for row in rows), PADDING)
    of_query, of_key = owners[:, :, None], owners[:, None, :]
    # Padding sees itself, for a token that saw nothing would get NaN; nothing else sees padding.
    mask = (of_key == COMMON) | (of_key == of_query)
    mask &= positions[:, None, :] <= positions[:, :, None]
    return tokens, positions, mask
