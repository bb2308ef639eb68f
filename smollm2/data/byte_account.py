"""Whether tokens hold every byte of the text that they were made from."""

import json
from collections.abc import Sequence
from functools import lru_cache
from itertools import takewhile

import numpy as np
from tokenizers import Tokenizer

from smollm2.errors import UserError

# What tokenizers are known to lose or change: spaces, case, punctuation, compositions, widths,
# characters that cannot be seen, and the signs that stand for spaces or for parts of words.
PROBE = (
    'The  Quick (brown) fox_jumps -- over 12,345 lazy dogs; it\'s "so"!\n\n\tif x:\r\n   y = [1]   '
    "\u00c9cole e\u0301t\u00e9 stra\u00dfe \u0130 \ufb01n \uff21\uff42 \u00bd \u2460 \u2026 "
    "\u732b\u3002\u3000\u304b\u3099 \uac00\u1100\u1161 \u0645\u064e \u0e01\u0e33 \u201cq\u201d "
    "\u200b\u00a0\u00ad\ufeff\u2028 \U0001f469\u200d\U0001f680 "
    "<b>&amp; ##a \u2581b @@ c</w> \u0120d \u010a "
)
# Bytes that a tokenizer may lack without being refused: control characters other than whitespace,
# and those that are in no text or begin the characters of planes 4 to 16, of which few exist.
RARE = bytes([*range(9), 11, 12, *range(14, 32), 127, 0xC0, 0xC1, *range(0xF1, 0x100)])
EXACT_PIECES = 16  # of a corpus; in the others the sum of bytes is compared
SHOWN_BYTES = 24  # before and after a difference


def _alphabet() -> dict[str, int]:
    """The byte that each character of the byte-level alphabet stands for (GPT-2's encoder.py:
    printable Latin-1 characters are themselves, the others are shifted to U+0100 and later)."""
    kept = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    shifted = [byte for byte in range(256) if byte not in kept]
    return {chr(byte): byte for byte in kept} | {
        chr(256 + number): byte for number, byte in enumerate(shifted)
    }


BYTE_OF = _alphabet()


class ByteAccount:
    """The bytes of text that each token of a byte-level tokenizer stands for.

    Args:
        sizes: their number, unsigned `[vocab]`: 0 for a special token, for the end of text and for
            the unknown token.

    Raises:
        UserError: the tokenizer is not byte-level, or loses or changes bytes of a test text.
    """

    def __init__(self, tokenizer: Tokenizer, end_of_text: int | None = None) -> None:
        self.tokenizer = tokenizer
        layout = json.loads(tokenizer.to_str())
        vocab = tokenizer.get_vocab(with_added_tokens=True)
        self._added = tokenizer.get_added_tokens_decoder()
        learned = {number: token for token, number in vocab.items() if number not in self._added}
        if not (_is_byte_level(layout) and BYTE_OF.keys() >= set("".join(learned.values()))):
            raise _refusal()
        lacking = bytes(byte for token, byte in BYTE_OF.items() if token not in vocab)
        unknown = str(layout["model"].get("unk_token") or "") if lacking else ""
        self._dropped = b"" if unknown else bytes(byte for byte in lacking if byte in RARE)
        self._empty = {vocab.get(unknown), end_of_text}
        self._empty |= {number for number, token in self._added.items() if token.special}
        lengths = {number: len(token) for number, token in learned.items()}
        lengths |= {number: len(token.content.encode()) for number, token in self._added.items()}
        dtype = np.uint16 if max(lengths.values(), default=0) < 2**16 else np.uint32
        self.sizes = np.zeros(max(lengths, default=-1) + 1, dtype=dtype)
        for number, length in lengths.items():
            self.sizes[number] = 0 if number in self._empty else length
        self._contents: dict[int, bytes] = {}
        self.pieces = self.dropped = self.documents = 0
        self._document_is_whole = True
        known = "".join(char for char in PROBE if not set(char.encode()) & set(lacking))
        self.require(known, tokenizer.encode(known, add_special_tokens=False).ids)

    def add(self, text: str, ids: np.ndarray, ends_document: bool) -> None:
        """Account for the next piece of a document: compare the bytes themselves in the first
        pieces, in the others their number.

        Raises:
            UserError: as `require`.
        """
        self.pieces += 1
        n_bytes = len(text) if text.isascii() else len(text.encode())
        if self.pieces <= EXACT_PIECES or int(self.sizes[ids].sum()) != n_bytes:
            dropped = self.require(text, ids)
            self.dropped += dropped
            self._document_is_whole &= not dropped
        if ends_document:
            self.documents += not self._document_is_whole
            self._document_is_whole = True

    def note(self) -> str | None:
        """See `dropped_note`."""
        return dropped_note(self.dropped, self.documents)

    def require(self, text: str, ids: Sequence[int] | np.ndarray) -> int:
        """How many bytes of `text` have no token in `ids`.

        Raises:
            UserError: bytes other than `RARE` ones are lost, or some are changed.
        """
        data, held = text.encode(), b"".join(map(self._content, map(int, ids)))
        if held not in (data, self.kept(data)):
            raise _refusal(data, held)
        return len(data) - len(held)

    def kept(self, data: bytes) -> bytes:
        """`data` without the bytes that the tokenizer drops."""
        return data.translate(None, self._dropped)

    def _content(self, number: int) -> bytes:
        """The bytes of a token; kept, since tasks ask for the same ones again and again."""
        if (held := self._contents.get(number)) is None:
            held = self._contents[number] = self._content_of(number)
        return held

    def _content_of(self, number: int) -> bytes:
        if number in self._empty:
            return b""
        if number in self._added:
            return self._added[number].content.encode()
        return bytes(BYTE_OF[character] for character in self.tokenizer.id_to_token(number) or "")


def dropped_note(n_bytes: int, n_documents: int) -> str | None:
    """A sentence about bytes of so many documents that were dropped; None if there are none."""
    if not n_bytes:
        return None
    return (
        f"The tokenizer has no token for {n_bytes:,} bytes (control characters or rare planes of "
        f"Unicode) in {n_documents:,} documents: they are not in the tokens, and bits per byte are "
        "of the text without them."
    )


def token_bytes(tokenizer: Tokenizer, end_of_text: int | None = None) -> np.ndarray:
    """How many bytes of text each token stands for: `uint16 [vocab]` (`uint32` if one has more than
    65,535), 0 for a special token.

    The sum over the tokens of a text is its length in UTF-8, except for bytes without a token,
    which the tokenizer drops. SmolLM2's lacks 21; those that can occur in text are six control
    characters and the first byte of unassigned Unicode planes.

    Raises:
        UserError: as `ByteAccount`.
    """
    return ByteAccount(tokenizer, end_of_text).sizes


def count_bytes(tokenizer: Tokenizer, text: str, ids: Sequence[int], tail: str) -> int:
    """The UTF-8 bytes of `tail`, the end of `text`, that are in the tokens `ids` of `text`.

    The tokens of a byte-level tokenizer are compared byte for byte, those of another decoded; a
    space that it adds or strips at an end does not count.

    Raises:
        UserError: the tokenizer loses or changes some of `text`.
    """
    data = tail.encode()
    if account := _account_of(tokenizer):
        account.require(text, ids)
        return len(account.kept(data))
    decoded = tokenizer.decode(ids, skip_special_tokens=False)
    if decoded.strip(" ") != text.strip(" "):
        raise _refusal(text.encode(), decoded.encode())
    return len(data)


@lru_cache(maxsize=1)
def _account_of(tokenizer: Tokenizer) -> ByteAccount | None:
    """None for a tokenizer that is not byte-level, or that loses bytes of a test text."""
    try:
        return ByteAccount(tokenizer)
    except UserError:
        return None


def _is_byte_level(layout: dict[str, object]) -> bool:
    first = layout["pre_tokenizer"]
    first = first if isinstance(first, dict) else {}
    steps = first.get("pretokenizers", [first])
    byte_level = [step for step in steps if step.get("type") == "ByteLevel"]
    added_space = any(step.get("add_prefix_space") for step in steps)
    return bool(byte_level) and not added_space and layout["normalizer"] is None


def _refusal(data: bytes = b"", held: bytes = b"") -> UserError:
    """The error for a tokenizer that turns `data` into tokens that hold `held`."""
    same = takewhile(lambda pair: pair[0] == pair[1], zip(data, held, strict=False))
    place = sum(1 for _ in same)
    shown = slice(max(0, place - SHOWN_BYTES), place + SHOWN_BYTES)
    before, after = (part[shown].decode(errors="replace") for part in (data, held))
    example = f" It turns {before!r} into {after!r}." if data else ""
    return UserError(
        f"The tokenizer does not account for each byte of a text.{example} Expected byte-level BPE "
        "that keeps every byte, without a normalizer or an added space, as `smollm2` or "
        "`train:4096`."
    )
