"""From documents to token files: split, encode, write once, open read-only ever after."""

import errno
import hashlib
import json
import os
import platform
import re
import shutil
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock
from tokenizers import Encoding, Tokenizer

from smollm2.data.documents import is_path, is_unbounded, source_identity, source_name
from smollm2.data.splits import SPLITS, scan, splitter
from smollm2.data.tokenizer import (
    end_of_text_id,
    load_tokenizer,
    parse_train_spec,
    require_vocab,
    token_bytes,
    tokenizer_fingerprint,
    train_tokenizer,
)
from smollm2.errors import RunError, UserError
from smollm2.files import write_folder

FORMAT = 1
HUB_TOKENS = 100_000_000  # of a hub source, unless max_tokens says otherwise
# Small pieces spread over the cores; a whole novel at a time encodes several times slower.
PIECE_CHARACTERS = 8_192
BATCH_CHARACTERS = 2_000_000
SEAM = re.compile(r"(?<=\w) (?=\w)")

Progress = Callable[[str, int, int | None], None]


@dataclass(frozen=True)
class TokenData:
    """A prepared folder, opened read-only.

    The token arrays are memory maps, `uint16 [tokens]` for up to 65,536 token ids and `uint32`
    above; each document ends with `end_of_text`. `documents` and `n_bytes` (of UTF-8 text) count
    per split. `fingerprint` is of the tokens and `tokenizer_fingerprint` of the tokenizer, 16 hex
    digits each; `token_bytes` is `uint16 [vocab_size]`.
    """

    path: Path
    source: str
    fingerprint: str
    tokenizer_fingerprint: str
    vocab_size: int
    end_of_text: int
    documents: dict[str, int]
    n_bytes: dict[str, int]
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    tokenizer: Tokenizer
    token_bytes: np.ndarray


def prepare(
    source: str,
    tokenizer: str | None,
    *,
    out: Path | None = None,
    max_tokens: int | None = None,
    max_vocab: int | None = None,
    progress: Progress | None = None,
) -> TokenData:
    """Token files of `source`, written to `out` or, by default, kept in the cache.

    Args:
        source: see `documents`; or a folder prepared before, which is opened as it is.
        tokenizer: see `load_tokenizer`, or `train:N`; None only for a prepared folder.
        out: a folder that does not exist or is empty.
        max_tokens: the train split stops at this many, and reading with it; validation and test
            have no bound of their own. 100 million for the hub, else no limit.
        max_vocab: of the model that is to read the tokens: a larger tokenizer is refused before the
            source is read. A folder prepared before has its tokenizer; `Protocol.on` checks that.
        progress: called with what is being done, how much of it is done and the total if known:
            `"scan"` (documents), then `"train tokenizer"` and `"tokenize"` (tokens for training).

    Raises:
        UserError: the source, the tokenizer or `out` cannot be used.
        RunError: the disk is full.
    """
    if is_prepared(source):
        return _open_as_asked(Path(source), tokenizer)
    if tokenizer is None:
        raise UserError(f"{source_name(source)!r} is not prepared: name a tokenizer for it.")
    if max_tokens is None and is_unbounded(source):
        max_tokens = HUB_TOKENS
    if max_tokens is not None and max_tokens < 1:
        raise UserError(f"max_tokens is {max_tokens}: expected at least 1 token for training.")
    try:
        identity = source_identity(source)
    except OSError as error:
        raise UserError(f"Cannot read {source_name(source)!r}: {error.strerror}.") from error
    vocab_size = parse_train_spec(tokenizer)
    made_with = load_tokenizer(tokenizer) if vocab_size is None else vocab_size
    if max_vocab is not None:
        n_tokens = made_with if isinstance(made_with, int) else len(token_bytes(made_with))
        require_vocab(n_tokens, max_vocab)
    write = partial(_write, source, made_with, max_tokens, progress or _silent)
    try:
        if out is not None:
            return _written_to(out, write)
        tokenizer_key = (
            made_with if isinstance(made_with, int) else tokenizer_fingerprint(made_with)
        )
        key = json.dumps([FORMAT, identity, tokenizer_key, max_tokens])
        name = f"{_file_name(source)}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
        return _cached(name, write)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RunError("The disk is full: free some space or name another --out.") from error
        raise UserError(
            f"Cannot write to {str(out or cache_dir())!r} ({error.strerror}): name a folder you "
            "may write to with --out, or with SMOLCTL_CACHE for the cache."
        ) from error


def open_prepared(path: Path) -> TokenData:
    """Open the folder that `prepare` wrote; neither `datasets` nor the source is needed.

    All tokens are read once, to compare them with their fingerprint.

    Raises:
        UserError: it is no such folder, or a file in it is missing or damaged.
    """
    try:
        info = json.loads((path / "data.json").read_text(encoding="utf-8"))
        if info["format"] != FORMAT:
            raise UserError(
                f"{path.name!r} was prepared by another version (format {info['format']}, expected "
                f"{FORMAT}): prepare it again from its source."
            )
        tokenizer = load_tokenizer(str(path))
        if tokenizer_fingerprint(tokenizer) != info["tokenizer_fingerprint"]:
            raise ValueError("tokenizer.json is not the one its tokens were made with")
        data = TokenData(
            path=path,
            source=info["source"],
            fingerprint=info["fingerprint"],
            tokenizer_fingerprint=info["tokenizer_fingerprint"],
            vocab_size=info["vocab_size"],
            end_of_text=info["end_of_text"],
            documents={split: info["splits"][split]["documents"] for split in SPLITS},
            n_bytes={split: info["splits"][split]["bytes"] for split in SPLITS},
            train=_tokens(path, info, "train"),
            validation=_tokens(path, info, "validation"),
            test=_tokens(path, info, "test"),
            tokenizer=tokenizer,
            token_bytes=token_bytes(tokenizer),
        )
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"The prepared folder {path.name!r} is missing something or damaged ({error}): prepare "
            "it again from its source."
        ) from error
    digests = [hashlib.sha256(getattr(data, split).data).digest() for split in SPLITS]
    if _fingerprint(digests) != data.fingerprint:
        raise UserError(
            f"The tokens in {path.name!r} are not those that were prepared: copy the folder again, "
            "or prepare it again from its source."
        )
    return data


def is_prepared(source: str) -> bool:
    """Whether `source` is a folder that `prepare` wrote."""
    try:
        return is_path(source) and (Path(source) / "data.json").is_file()
    except OSError:  # no name of a file, such as one too long
        return False


def find_prepared(fingerprint: str) -> Path | None:
    """The folder whose tokens have this fingerprint, in the cache or opened before elsewhere."""
    folder = cache_dir() / "data"
    pointer = folder / f"{fingerprint}.path"
    elsewhere = [Path(pointer.read_text(encoding="utf-8"))] if pointer.is_file() else []
    for file in [*sorted(folder.glob("*/data.json")), *(path / "data.json" for path in elsewhere)]:
        try:
            if json.loads(file.read_text(encoding="utf-8"))["fingerprint"] == fingerprint:
                return file.parent
        except (OSError, ValueError, KeyError, TypeError):
            continue  # damaged, so not the folder that was asked for
    return None


def cache_dir() -> Path:
    """`$SMOLCTL_CACHE`, else `$XDG_CACHE_HOME/smolctl`, else `~/.cache/smolctl`."""
    if own := os.environ.get("SMOLCTL_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "smolctl"


# Folders: complete or absent


def _open_as_asked(path: Path, tokenizer: str | None) -> TokenData:
    """A folder that came from elsewhere; its place is remembered."""
    data = open_prepared(path)
    if tokenizer is not None:
        _require_tokenizer(data, tokenizer)
    (cache_dir() / "data").mkdir(parents=True, exist_ok=True)
    pointer = cache_dir() / "data" / f"{data.fingerprint}.path"
    pointer.write_text(str(path.resolve()), encoding="utf-8")
    return data


def _require_tokenizer(data: TokenData, tokenizer: str) -> None:
    """Raise `UserError` unless `tokenizer` is known to be the one that `data` was made with.

    The network is not asked: the folder brings all that training needs.
    """
    name, asked = data.path.resolve().name, ""
    if parse_train_spec(tokenizer) is None:
        try:
            asked = tokenizer_fingerprint(load_tokenizer(tokenizer, fetch=False))
        except UserError as error:
            raise UserError(
                f"{name!r} brings its own tokenizer, which cannot be compared with "
                f"{Path(tokenizer).name!r}: leave out the tokenizer. {error}"
            ) from error
    if asked != data.tokenizer_fingerprint:
        raise UserError(
            f"{name!r} is prepared with another tokenizer ({data.tokenizer_fingerprint}) than "
            f"{Path(tokenizer).name!r}: leave out the tokenizer, or name the source that the "
            "folder was prepared from."
        )


def _written_to(out: Path, write: Callable[[Path], None]) -> TokenData:
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{str(out)!r} exists already: name a new or an empty folder with --out.")
    out.parent.mkdir(parents=True, exist_ok=True)
    write_folder(out, write)
    return open_prepared(out)


def _cached(name: str, write: Callable[[Path], None]) -> TokenData:
    folder = cache_dir() / "data"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f"{name}.lock"):
        try:
            return open_prepared(folder / name)
        except UserError:  # not there yet, or damaged
            shutil.rmtree(folder / name, ignore_errors=True)
        for left in folder.glob(f".{name}.*"):  # by a process that was killed: we hold the lock
            shutil.rmtree(left, ignore_errors=True)
        write_folder(folder / name, write)
        return open_prepared(folder / name)


def _fingerprint(digests: list[bytes]) -> str:
    """One fingerprint from the SHA-256 of each split, in the order of SPLITS."""
    return hashlib.sha256(b"".join(digests)).hexdigest()[:16]


def _file_name(source: str) -> str:
    name = source_name(source).removeprefix("hub:")
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in name).strip(".")[:80] or "data"


def _tokens(path: Path, info: dict[str, Any], split: str) -> np.ndarray:
    file, dtype = path / f"{split}.bin", np.dtype(info["dtype"])
    expected = info["splits"][split]["tokens"] * dtype.itemsize
    if file.stat().st_size != expected:
        raise ValueError(f"{file.name} has {file.stat().st_size:,} bytes, expected {expected:,}")
    return np.memmap(file, dtype=dtype, mode="r")


def _silent(stage: str, done: int, total: int | None) -> None:
    """No one asked for progress."""


# Encoding and writing


class _Piece(NamedTuple):
    split: str
    text: str
    ends_document: bool


class _SplitFile:
    """One token file as it grows, up to `limit` tokens."""

    def __init__(self, path: Path, dtype: np.dtype, limit: int | None) -> None:
        self.file = path.open("wb", buffering=2**20)
        self.dtype = dtype
        self.hash = hashlib.sha256()
        self.left = limit
        self.tokens = self.documents = self.bytes = 0

    @property
    def full(self) -> bool:
        return self.left == 0

    def write(self, ids: list[int], sizes: np.ndarray, ends_document: bool) -> None:
        """Append what fits of `ids`; `sizes` says how many bytes each token stands for."""
        if self.full:
            return
        tokens = np.array(ids[: self.left], dtype=self.dtype)
        self.file.write(tokens.data)
        self.hash.update(tokens.data)
        self.tokens += len(tokens)
        self.bytes += int(sizes[tokens].sum())
        if self.left is not None:
            self.left -= len(tokens)
        self.documents += ends_document or self.full


def _write(
    source: str, tokenizer: Tokenizer | int, max_tokens: int | None, progress: Progress, path: Path
) -> None:
    """Everything a prepared folder holds, into the empty folder `path`.

    `tokenizer` may be a vocabulary size: then one is trained on the training documents.
    """
    hashes, texts = scan(source, progress)
    rule, split = splitter(hashes)
    if isinstance(tokenizer, int):
        progress("train tokenizer", 0, None)
        parts = (part for text in texts() for part in split(text))
        tokenizer = train_tokenizer(tokenizer, (text for name, text in parts if name == "train"))
    sizes, end_of_text = token_bytes(tokenizer), end_of_text_id(tokenizer)
    dtype = np.dtype(np.uint16 if len(sizes) <= 2**16 else np.uint32)
    limits = {"train": max_tokens}
    files = {name: _SplitFile(path / f"{name}.bin", dtype, limits.get(name)) for name in SPLITS}
    with ExitStack() as stack:
        for file in files.values():
            stack.enter_context(file.file)
        pieces = (piece for text in texts() for piece in _pieces(split(text)))
        wanted = _wanted(pieces, files)
        for piece, ids in stack.enter_context(closing(_encoded(tokenizer, wanted))):
            if piece.ends_document:
                ids.append(end_of_text)
            files[piece.split].write(ids, sizes, piece.ends_document)
            progress("tokenize", files["train"].tokens, max_tokens)
            if (piece.ends_document or piece.split == "train") and _enough(files):
                break
    if empty := [name for name in SPLITS if not files[name].tokens]:
        raise UserError(
            f"{source_name(source)!r} is too small: nothing is left for {' and '.join(empty)}. "
            "Expected at least a few sentences; give more text."
        )
    tokenizer.save(str(path / "tokenizer.json"))
    info = {
        "format": FORMAT,
        "source": source_name(source),
        "python": platform.python_version() if source == "builtin" else None,
        "fingerprint": _fingerprint([file.hash.digest() for file in files.values()]),
        "tokenizer_fingerprint": tokenizer_fingerprint(tokenizer),
        "vocab_size": len(sizes),
        "end_of_text": end_of_text,
        "dtype": dtype.name,
        "max_tokens": max_tokens,
        "split_rule": rule,
        "splits": {
            name: {"tokens": file.tokens, "documents": file.documents, "bytes": file.bytes}
            for name, file in files.items()
        },
    }
    (path / "data.json").write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")


def _enough(files: dict[str, _SplitFile]) -> bool:
    """The train split is full; the others must have something however early that is."""
    return files["train"].full and all(file.tokens for file in files.values())


def _wanted(pieces: Iterator[_Piece], files: dict[str, _SplitFile]) -> Iterator[_Piece]:
    """`pieces` without those that there is no need to encode once the train split is full."""
    complete: set[str] = set()
    for piece in pieces:
        if files["train"].full and complete == {"validation", "test"}:
            return
        if not files[piece.split].full:
            yield piece
        if piece.ends_document and piece.split != "train":
            complete.add(piece.split)


def _pieces(parts: list[tuple[str, str]]) -> Iterator[_Piece]:
    """Each part of a document in pieces of about 8,000 characters.

    They are cut before a space between two words, where byte-level tokenizers start a token anyway;
    only a text without such spaces gets other tokens at a cut than it would have as a whole.
    """
    for split, text in parts:
        start = 0
        while len(text) - start > 2 * PIECE_CHARACTERS:
            soonest = start + PIECE_CHARACTERS
            seam = SEAM.search(text, soonest, soonest + PIECE_CHARACTERS)
            end = seam.start() if seam else soonest
            yield _Piece(split, text[start:end], False)
            start = end
        yield _Piece(split, text[start:], True)


def _encoded(
    tokenizer: Tokenizer, pieces: Iterator[_Piece]
) -> Generator[tuple[_Piece, list[int]], None, None]:
    """The pieces with their token ids, in order.

    One thread encodes (on all cores, without the interpreter's lock) while this one reads the next
    batch and hands out the last; at most three batches are in memory.
    """
    encode = getattr(tokenizer, "encode_batch_fast", tokenizer.encode_batch)
    waiting: deque[tuple[list[_Piece], Future[list[Encoding]]]] = deque()
    with ThreadPoolExecutor(max_workers=1) as worker:
        for batch in chain(_batches(pieces), (None,)):
            if batch:
                texts = [piece.text for piece in batch]
                waiting.append((batch, worker.submit(encode, texts, add_special_tokens=False)))
            while len(waiting) > (1 if batch else 0):
                done, encodings = waiting.popleft()
                yield from zip(done, (e.ids for e in encodings.result()), strict=True)


def _batches(pieces: Iterator[_Piece]) -> Iterator[list[_Piece]]:
    batch: list[_Piece] = []
    characters = 0
    for piece in pieces:
        batch.append(piece)
        characters += len(piece.text)
        if characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
