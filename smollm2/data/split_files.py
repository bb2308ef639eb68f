"""Documents written as tokens: a file for each split, with the ends of held-out documents."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from smollm2.data.byte_account import ByteAccount
from smollm2.data.encode import Piece, cut, encode
from smollm2.data.splits import SPLITS, Splitter

ENDS = np.dtype(np.int64)  # of the positions in a file of ends


class SplitFile:
    """A token file as it grows, and beside that of a held-out split the positions of its
    end-of-text tokens.

    Args:
        path: of the tokens; the ends go to the same name with the suffix `.ends`.
        limit: tokens after which the file is full.
        is_whole: whether a document is never cut: the one that reaches the limit is the last.
    """

    def __init__(
        self, path: Path, end_of_text: int, limit: int | None, *, is_whole: bool = False
    ) -> None:
        self.end_of_text, self.limit, self.is_whole = end_of_text, limit, is_whole
        self.file = path.open("wb", buffering=2**20)
        self.ends = None if path.stem == "train" else path.with_suffix(".ends").open("wb")
        self.hash, self.ends_hash = hashlib.sha256(), hashlib.sha256()
        self.tokens = self.documents = self.bytes = 0
        self._is_between_documents = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.file.close()
        if self.ends:
            self.ends.close()

    @property
    def full(self) -> bool:
        if self.limit is None or self.tokens < self.limit:
            return False
        return self._is_between_documents or not self.is_whole

    def write(self, tokens: np.ndarray, sizes: np.ndarray, ends_document: bool) -> None:
        """Append what fits of `tokens`; `sizes` has the bytes of each token."""
        if self.full:
            return
        if self.limit is not None and not self.is_whole:
            tokens = tokens[: self.limit - self.tokens]
        self.file.write(tokens.data)
        self.hash.update(tokens.data)
        if self.ends:
            found = self.tokens + np.flatnonzero(tokens == self.end_of_text)
            content = found.astype(ENDS).data
            self.ends.write(content)
            self.ends_hash.update(content)
        self.tokens += len(tokens)
        self.bytes += int(sizes[tokens].sum())
        self._is_between_documents = ends_document
        self.documents += ends_document or self.full

    def facts(self) -> dict[str, Any]:
        """What data.json says about the file."""
        facts = {"tokens": self.tokens, "documents": self.documents, "bytes": self.bytes}
        return facts | ({"ends": self.ends_hash.hexdigest()} if self.ends else {})


def write_splits(
    folder: Path,
    texts: Iterable[str],
    split: Splitter,
    account: ByteAccount,
    end_of_text: int,
    limits: Mapping[str, int | None],
    on_tokens: Callable[[int], None],
    *,
    is_whole: bool = False,
) -> dict[str, SplitFile]:
    """Write the tokens of documents into files of `folder`, one for each split; returns the files,
    closed. Reading stops when the train split is full and none of the others is empty.

    Args:
        limits: by split; none where there is no entry.
        on_tokens: called with the tokens of the train split so far.
        is_whole: see `SplitFile`.

    Raises:
        UserError: the tokenizer fails, or loses bytes.
    """
    files: dict[str, SplitFile] = {}
    dtype = token_dtype(len(account.sizes))
    with ExitStack() as stack:
        for name in SPLITS:
            path, limit = folder / f"{name}.bin", limits.get(name)
            files[name] = stack.enter_context(
                SplitFile(path, end_of_text, limit, is_whole=is_whole)
            )
        pieces = skip_surplus((piece for text in texts for piece in cut(split(text))), files)
        for piece, ids in stack.enter_context(closing(encode(account.tokenizer, pieces))):
            tokens = np.array([*ids, end_of_text] if piece.ends_document else ids, dtype=dtype)
            account.add(piece.text, tokens, piece.ends_document)
            files[piece.split].write(tokens, account.sizes, piece.ends_document)
            on_tokens(files["train"].tokens)
            if (piece.ends_document or piece.split == "train") and has_enough(files):
                break
    return files


def token_dtype(vocab_size: int) -> np.dtype:
    """`uint16` for up to 65,536 token ids, else `uint32`."""
    return np.dtype(np.uint16 if vocab_size <= 2**16 else np.uint32)


def has_enough(files: dict[str, SplitFile]) -> bool:
    """Whether the train split is full and the others are not empty."""
    return files["train"].full and all(file.tokens for file in files.values())


def skip_surplus(pieces: Iterator[Piece], files: dict[str, SplitFile]) -> Iterator[Piece]:
    """`pieces` without those that need no encoding as their split, or the train split, is full."""
    complete: set[str] = set()
    for piece in pieces:
        if files["train"].full and complete == {"validation", "test"}:
            return
        if not files[piece.split].full:
            yield piece
        if piece.ends_document and piece.split != "train":
            complete.add(piece.split)
