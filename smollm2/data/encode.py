"""Documents as token ids: pieces of text, encoded on all cores."""

import re
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from typing import NamedTuple

from tokenizers import Encoding, Tokenizer

from smollm2.data.panics import no_panic
from smollm2.errors import UserError, reason

# Small pieces spread over the cores; encoding a whole novel at once is several times slower.
PIECE_CHARACTERS = 8_192
BATCH_CHARACTERS = 2_000_000
SEAM = re.compile(r"(?<=\w) (?=\w)")


class Piece(NamedTuple):
    """A piece of a document, and whether the document ends with it."""

    split: str
    text: str
    ends_document: bool


def cut(parts: list[tuple[str, str]]) -> Iterator[Piece]:
    """Each part of a document in pieces of about 8,000 characters.

    A cut is before a space between two words, where byte-level tokenizers start a token anyway.
    Only a text without such spaces is tokenized differently at a cut than as a whole.
    """
    for split, text in parts:
        start = 0
        while len(text) - start > 2 * PIECE_CHARACTERS:
            soonest = start + PIECE_CHARACTERS
            seam = SEAM.search(text, soonest, soonest + PIECE_CHARACTERS)
            end = seam.start() if seam else soonest
            yield Piece(split, text[start:end], False)
            start = end
        yield Piece(split, text[start:], True)


def encode(
    tokenizer: Tokenizer, pieces: Iterator[Piece]
) -> Generator[tuple[Piece, list[int]], None, None]:
    """The pieces with their token ids, in order.

    One thread encodes (on all cores, without the interpreter's lock) while the caller's thread
    reads the next batch and yields the last; at most three batches are in memory.

    Raises:
        UserError: the tokenizer fails or panics.
    """
    encode_batch = getattr(tokenizer, "encode_batch_fast", tokenizer.encode_batch)
    waiting: deque[tuple[list[Piece], Future[list[Encoding]]]] = deque()
    with ThreadPoolExecutor(max_workers=1) as worker:
        for batch in chain(in_batches(pieces), (None,)):
            if batch:
                texts = [piece.text for piece in batch]
                waiting.append(
                    (batch, worker.submit(encode_batch, texts, add_special_tokens=False))
                )
            while len(waiting) > (1 if batch else 0):
                done, encoded = waiting.popleft()
                try:
                    with no_panic():
                        encodings = encoded.result()
                except Exception as error:  # `tokenizers` raises plain Exception
                    raise UserError(
                        f"The tokenizer cannot encode the text ({reason(error)}): use another "
                        "tokenizer."
                    ) from error
                yield from zip(done, (e.ids for e in encodings), strict=True)


def in_batches(pieces: Iterator[Piece]) -> Iterator[list[Piece]]:
    """Pieces in lists of about `BATCH_CHARACTERS`."""
    batch: list[Piece] = []
    characters = 0
    for piece in pieces:
        batch.append(piece)
        characters += len(piece.text)
        if characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
