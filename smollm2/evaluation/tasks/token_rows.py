"""Questions as rows of tokens.

The choices of a question become one row, in which their common start appears once:

    [ common | rest of choice 1 | rest of choice 2 | ... ]

A token attends to the common start and to its own choice, at the position that it has in its own
sequence. Its hidden state is then the same as in that sequence alone.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from smollm2.data import count_bytes, encode_text, end_of_text_id
from smollm2.errors import UserError
from smollm2.evaluation.tasks.items import Item

if TYPE_CHECKING:
    from tokenizers import Tokenizer

COMMON, PADDING = -1, -2  # owners other than a choice, whose number is 0 or more


@dataclass(frozen=True)
class EncodedChoice:
    """A context and a continuation as tokens; the last `n_scored` are scored.

    Args:
        n_bytes: of the scored text in UTF-8.
    """

    tokens: list[int]
    n_scored: int
    n_bytes: int


@dataclass(frozen=True)
class TokenRow:
    """An item as a row of tokens; the last token of a choice is only a target.

    Args:
        index: of the item.
        tokens, positions, owners: per token; the owner is the number of the choice that the token
            belongs to, or COMMON.
        scored, targets: choice after choice, which tokens of the row predict, and what.
        n_scored, n_bytes: per choice, the number of scored tokens, and the bytes of their text.
    """

    index: int
    tokens: list[int]
    positions: list[int]
    owners: list[int]
    scored: list[int]
    targets: list[int]
    n_scored: list[int]
    n_bytes: list[int]


def token_row(index: int, item: Item, tokenizer: "Tokenizer", max_len: int) -> TokenRow:
    """Tokenize item number `index` for a model that reads up to `max_len` tokens.

    A longer choice is truncated on its left, and shares what is then still common.

    Raises:
        UserError: a continuation has no tokens of its own, or more than `max_len`.
    """
    pairs = zip(item.contexts, item.continuations, strict=True)
    choices = [encode_choice(tokenizer, *pair) for pair in pairs]
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
    return TokenRow(index, row, positions, owners, scored, targets, n_scored, n_bytes)


def encode_choice(tokenizer: "Tokenizer", context: str, continuation: str) -> EncodedChoice:
    """Tokenize as lm-evaluation-harness does.

    Trailing spaces of the context count as the continuation's. Both are encoded together and split
    at the length of the context alone; an empty context is replaced by the end-of-text token. As in
    training, the tokenizer's template is not applied.

    Raises:
        UserError: the tokenizer fails, or its tokens do not hold the text.
    """

    start = context.rstrip()
    text = context[len(start) :] + continuation
    whole = encode_text(tokenizer, start + text)
    n_bytes = count_bytes(tokenizer, start + text, whole, text)
    before = encode_text(tokenizer, start) if start else []
    scored = whole[len(before) :]
    before = before if start else [end_of_text_id(tokenizer)]
    return EncodedChoice(before + scored, len(scored), n_bytes)


def common_start(sequences: list[list[int]]) -> int:
    """The number of tokens that all `sequences` start with."""
    for place, tokens in enumerate(zip(*sequences, strict=False)):
        if len(set(tokens)) > 1:
            return place
    return min(map(len, sequences))


def batches(
    items: Iterable[TokenRow], *, max_tokens: float = math.inf, max_items: float = math.inf
) -> Iterator[list[TokenRow]]:
    """Batches of items of similar length, the longest first.

    A batch has at most `max_tokens` tokens, padding included, and at most `max_items` items, but at
    least one item.
    """
    batch: list[TokenRow] = []
    for item in sorted(items, key=lambda item: -len(item.tokens)):
        size = len(batch) + 1
        if batch and (size > max_items or size * len(batch[0].tokens) > max_tokens):
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch


def stack_rows(rows: list[TokenRow], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens and positions (B, T) and the mask (B, T, T): True where a token sees another."""
    width = max(len(row.tokens) for row in rows)

    def padded(columns: Iterable[list[int]], fill: int) -> Tensor:
        return torch.tensor([c + [fill] * (width - len(c)) for c in columns], device=device)

    tokens = padded((row.tokens for row in rows), 0)
    positions = padded((row.positions for row in rows), 0)
    owners = padded((row.owners for row in rows), PADDING)
    of_query, of_key = owners[:, :, None], owners[:, None, :]
    # Padding attends to itself, since a token that attends to nothing gets NaN; nothing else does.
    mask = (of_key == COMMON) | (of_key == of_query)
    mask &= positions[:, None, :] <= positions[:, :, None]
    return tokens, positions, mask
