"""Which documents are held out: whole documents by the hash of their content, so duplicates stay
together; a stretch of each document if there are only a few."""

import hashlib
import re
from collections.abc import Callable, Iterator
from functools import partial

from smollm2.data.corpora import documents
from smollm2.errors import UserError

SPLITS = ("train", "validation", "test")
SCANNED = 1000  # distinct documents read before deciding how to split
KEPT_BYTES = 100_000_000  # of text; to read and unpack 64 MB again takes half a second
HELD_OUT = 0.05  # the usual share of the documents for validation, and again for test
MOST_HELD_OUT = 0.4
FEWEST_HELD_OUT = 2  # documents in a split whose share was asked for: one has no spread
FEW = 20  # documents, of which a stretch of each is held out
PARTS = 10**6  # shares are whole millionths, so that a cut does not depend on rounding

Splitter = Callable[[str], list[tuple[str, str]]]


def require_share(held_out: float) -> None:
    """Raise `UserError` unless this share of the documents can be held out twice."""
    if not 1 / PARTS <= held_out <= MOST_HELD_OUT:  # false for nan
        raise UserError(
            f"`held_out` is {held_out:g}: expected a share of the documents above 0 and at most "
            f"{MOST_HELD_OUT}.",
            field="held_out",
        )


def require_held_out(counts: dict[str, int], held_out: float) -> None:
    """Raise `UserError` if a split has fewer than `FEWEST_HELD_OUT` documents.

    Args:
        counts: documents by split.
        held_out: the share that was asked for.
    """
    for split in SPLITS[1:]:
        if counts[split] < FEWEST_HELD_OUT:
            found = ", ".join(f"{n:,} for {name}" for name, n in counts.items())
            raise UserError(
                f"`held_out={held_out:g}` leaves too few documents for {split} ({found}): expected "
                f"at least {FEWEST_HELD_OUT}. Give more documents or a larger share, or omit it.",
                field="held_out",
            )


def require_text(counts: dict[str, int], name: str) -> None:
    """Raise `UserError` if a split of the source `name` has no tokens.

    Args:
        counts: tokens by split.
    """
    if empty := [split for split in SPLITS if not counts[split]]:
        raise UserError(
            f"{name!r} is too small: nothing is left for {' and '.join(empty)}. Expected at least "
            "a few sentences; give more text."
        )


def scan(
    source: str, progress: Callable[[str, int, int | None], None]
) -> tuple[list[bytes], Callable[[], Iterator[str]]]:
    """The sorted hashes of up to 1000 distinct documents, and a function that reads all documents
    again: from memory if there are no others and they fit in `KEPT_BYTES`."""
    found: set[bytes] = set()
    kept: list[bytes] = []
    size = 0
    for count, text in enumerate(documents(source), 1):
        data = text.encode()
        found.add(hashlib.sha256(data).digest())
        size += len(data)
        if size <= KEPT_BYTES:
            kept.append(data)
        else:
            kept.clear()
        progress("scan", count, None)
        if len(found) == SCANNED:
            break
    else:
        if kept:
            return sorted(found), lambda: (data.decode() for data in kept)
    return sorted(found), partial(documents, source)


def splitter(hashes: list[bytes], held_out: float = HELD_OUT) -> tuple[str, Splitter]:
    """How to split a source in which `scan` found `hashes`: a name for it and the function.

    Args:
        held_out: the share of the documents for validation, and again for test.
    """
    shares = f"{100 - 200 * held_out:g}/{100 * held_out:g}/{100 * held_out:g}"
    if len(hashes) < FEW:
        return f"{shares} of each document", partial(_stretches, held_out)
    if len(hashes) < SCANNED:
        count = max(1, round(held_out * len(hashes)))
        last = hashes[count - 1], hashes[2 * count - 1]
        rule = f"{count} documents each for validation and test, by SHA-256"
    else:
        last = _threshold(held_out), _threshold(2 * held_out)
        rule = f"{shares} of the documents, by SHA-256"

    def by_hash(text: str) -> list[tuple[str, str]]:
        value = hashlib.sha256(text.encode()).digest()
        split = "validation" if value <= last[0] else "test" if value <= last[1] else "train"
        return [(split, text)]

    return rule, by_hash


def _threshold(share: float) -> bytes:
    return round(share * 2**64).to_bytes(8, "big")


def _stretches(held_out: float, text: str) -> list[tuple[str, str]]:
    """The beginning for training, then the share `held_out` twice, cut before whitespace where
    there is some."""
    share = round(held_out * PARTS)
    first = _cut_near(text, len(text) * (PARTS - 2 * share) // PARTS)
    second = max(first, _cut_near(text, len(text) * (PARTS - share) // PARTS))
    parts = zip(SPLITS, (text[:first], text[first:second], text[second:]), strict=True)
    return [(split, part) for split, part in parts if part]


def _cut_near(text: str, place: int) -> int:
    space = re.compile(r"\s").search(text, place)
    return space.start() if space else place
