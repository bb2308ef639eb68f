"""Which documents are held out: whole documents by the hash of their content, so duplicates stay
together; a stretch of each document if there are only a few."""

import hashlib
import re
from collections.abc import Callable, Iterator
from functools import partial

from smollm2.data.corpora import documents

SPLITS = ("train", "validation", "test")
SCANNED = 1000  # distinct documents read before deciding how to split
KEPT_BYTES = 100_000_000  # of text; to read and unpack 64 MB again takes half a second
HELD_OUT = 0.05  # of the documents, for validation and again for test

Splitter = Callable[[str], list[tuple[str, str]]]


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


def splitter(hashes: list[bytes]) -> tuple[str, Splitter]:
    """How to split a source in which `scan` found `hashes`: a name for it and the function."""
    if len(hashes) < 20:
        return "90/5/5 of each document", _stretches
    if len(hashes) < SCANNED:
        count = max(1, round(HELD_OUT * len(hashes)))
        last = hashes[count - 1], hashes[2 * count - 1]
        rule = f"{count} documents each for validation and test, by SHA-256"
    else:
        last = _threshold(HELD_OUT), _threshold(2 * HELD_OUT)
        rule = "90/5/5 of the documents, by SHA-256"

    def by_hash(text: str) -> list[tuple[str, str]]:
        value = hashlib.sha256(text.encode()).digest()
        split = "validation" if value <= last[0] else "test" if value <= last[1] else "train"
        return [(split, text)]

    return rule, by_hash


def _threshold(share: float) -> bytes:
    return round(share * 2**64).to_bytes(8, "big")


def _stretches(text: str) -> list[tuple[str, str]]:
    """The first 90 % for training, then 5 % each, cut before whitespace where there is some."""
    first = _cut_near(text, len(text) * 90 // 100)
    second = max(first, _cut_near(text, len(text) * 95 // 100))
    parts = zip(SPLITS, (text[:first], text[first:second], text[second:]), strict=True)
    return [(split, part) for split, part in parts if part]


def _cut_near(text: str, place: int) -> int:
    space = re.compile(r"\s").search(text, place)
    return space.start() if space else place
