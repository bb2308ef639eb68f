"""A prepared folder, opened read-only."""

import hashlib
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from smollm2.data.byte_account import token_bytes
from smollm2.data.corpora import is_path
from smollm2.data.data_json import read_info, tokens_fingerprint
from smollm2.data.ngram import Floors, count_floors, floors_between
from smollm2.data.sharded_tokens import Tokens, open_shards
from smollm2.data.split_files import ENDS
from smollm2.data.splits import HELD_OUT, SPLITS
from smollm2.data.tokenizer import load_tokenizer, tokenizer_fingerprint
from smollm2.errors import UserError, reason
from smollm2.files import cache_dir, checksum
from smollm2.parse import Unreadable, read_json

READ_BYTES = 8 * 2**20  # at a time


@dataclass(frozen=True)
class TokenData:
    """A prepared folder, opened read-only.

    The token arrays are memory maps, `uint16 [tokens]` for up to 65,536 token ids, else
    `uint32`; `train` may be in shards. Each document ends with `end_of_text`, whose positions in
    validation and test are in `ends`, `int64`. `documents` and `n_bytes` (of UTF-8 text) count per
    split. `fingerprint` is of the tokens and `tokenizer_fingerprint` of the tokenizer, 16 hex
    digits each; `token_bytes` is as that function. `notes` are sentences for the user: what of the
    source is not in the tokens. `recorded_floors` are those of `count_floors`; None in a folder of
    shards and one of an older version. `held_out` is the share of the documents for validation, and
    again for test.
    """

    path: Path
    source: str
    fingerprint: str
    tokenizer_fingerprint: str
    vocab_size: int
    end_of_text: int
    documents: dict[str, int]
    n_bytes: dict[str, int]
    ends: dict[str, np.ndarray]
    train: Tokens
    validation: np.ndarray
    test: np.ndarray
    tokenizer: Tokenizer
    token_bytes: np.ndarray
    notes: tuple[str, ...]
    recorded_floors: tuple[Floors, ...] | None
    held_out: float

    @cached_property
    def floors(self) -> tuple[Floors, ...]:
        """See `count_floors`; counted now if the folder does not have them, which takes seconds."""
        if self.recorded_floors is not None:
            return self.recorded_floors
        return count_floors(self.train, self.test, self.vocab_size)

    def floors_at(self, n_tokens: int) -> Floors | None:
        """Test losses of n-gram models counted on `n_tokens` training tokens, or on all of them,
        as a run of several epochs has seen no more; None if they cannot be counted. See
        `floors_between`."""
        return floors_between(self.floors, n_tokens)


def open_prepared(path: Path) -> TokenData:
    """Open the folder that `prepare` wrote; neither `datasets` nor the source is needed.

    All tokens are read once, to compare them with their fingerprint; those of shards once on each
    machine.

    Raises:
        UserError: it is not such a folder, or a file in it is missing or damaged.
    """
    try:
        info = read_info(path)
        tokenizer = load_tokenizer(str(path))
        if tokenizer_fingerprint(tokenizer) != info["tokenizer_fingerprint"]:
            raise ValueError("tokenizer.json is not the tokenizer of its tokens")
        sizes = token_bytes(tokenizer, info["end_of_text"])
        if not info["end_of_text"] < info["vocab_size"] == len(sizes):
            raise ValueError(f"its tokenizer has {len(sizes):,} tokens")
        read = {split: _tokens(path, info, split) for split in SPLITS[1:]}
        train, digests = open_shards(path, info) if "shards" in info else _whole(path, info)
        data = TokenData(
            path=path,
            source=info["source"],
            fingerprint=info["fingerprint"],
            tokenizer_fingerprint=info["tokenizer_fingerprint"],
            vocab_size=info["vocab_size"],
            end_of_text=info["end_of_text"],
            documents={split: info["splits"][split]["documents"] for split in SPLITS},
            n_bytes={split: info["splits"][split]["bytes"] for split in SPLITS},
            ends={split: _ends(path, info, split, read[split][0]) for split in SPLITS[1:]},
            train=train,
            **{split: tokens for split, (tokens, _) in read.items()},
            tokenizer=tokenizer,
            token_bytes=sizes,
            notes=tuple(info.get("notes", ())),
            recorded_floors=_recorded_floors(info),
            held_out=info.get("held_out", HELD_OUT),
        )
    except Unreadable as error:
        raise _damaged(path, f"data.json: {error.reason}") from error
    except UserError:
        raise
    except (OSError, ValueError) as error:
        raise _damaged(path, reason(error)) from error
    digests += [digest for _, digest in read.values()]
    if tokens_fingerprint(digests) != data.fingerprint:
        raise UserError(
            f"The tokens in {path.name!r} differ from those that were prepared: copy the folder "
            "again, or prepare it again from its source."
        )
    return data


def is_prepared(source: str) -> bool:
    """Whether `source` is a folder that `prepare` wrote."""
    try:
        return is_path(source) and (Path(source) / "data.json").is_file()
    except OSError:  # not a valid file name, such as one too long
        return False


def find_prepared(fingerprint: str, tokenizer_fingerprint: str) -> Path | None:
    """The folder with these tokens of this tokenizer, in the cache or opened earlier.

    Two tokenizers can give the same tokens, such as one and the same with a few words more.
    """
    wanted = {"fingerprint": fingerprint, "tokenizer_fingerprint": tokenizer_fingerprint}
    pointer = pointer_to(fingerprint, tokenizer_fingerprint)
    elsewhere = [Path(os.fsdecode(pointer.read_bytes()))] if pointer.is_file() else []
    cached = sorted((cache_dir() / "data").glob("*/data.json"))
    for file in [*cached, *(path / "data.json" for path in elsewhere)]:
        try:
            if wanted.items() <= read_json(file).items():
                return file.parent
        except UserError:
            continue  # damaged, so not the requested folder
    return None


def pointer_to(fingerprint: str, tokenizer_fingerprint: str) -> Path:
    """The file in the cache that keeps the path of a prepared folder elsewhere."""
    return cache_dir() / "data" / f"{fingerprint}-{tokenizer_fingerprint}.path"


def _recorded_floors(info: dict[str, Any]) -> tuple[Floors, ...] | None:
    return tuple(Floors(**each) for each in info["floors"]) if "floors" in info else None


def _damaged(path: Path, why: str) -> UserError:
    return UserError(
        f"The prepared folder {path.name!r} is incomplete or damaged ({why}): prepare it again "
        "from its source."
    )


def _whole(path: Path, info: dict[str, Any]) -> tuple[np.ndarray, list[bytes]]:
    """The training tokens of a folder without shards, as `open_shards` gives those of one with."""
    train, digest = _tokens(path, info, "train")
    return train, [digest]


def _tokens(path: Path, info: dict[str, Any], split: str) -> tuple[np.ndarray, bytes]:
    """A memory map of a split, and its SHA-256, for which the file is read once."""
    file, dtype, digest = path / f"{split}.bin", np.dtype(info["dtype"]), hashlib.sha256()
    expected = info["splits"][split]["tokens"] * dtype.itemsize
    if file.stat().st_size != expected:
        raise ValueError(f"{file.name} has {file.stat().st_size:,} bytes, expected {expected:,}")
    with file.open("rb") as content:
        while part := content.read(READ_BYTES):
            digest.update(part)
            ids = np.frombuffer(part, dtype, count=len(part) // dtype.itemsize)
            if ids.max(initial=0) >= info["vocab_size"]:
                raise ValueError(f"{file.name} holds a token that the tokenizer lacks")
    return np.memmap(file, dtype=dtype, mode="r"), digest.digest()


def _ends(path: Path, info: dict[str, Any], split: str, tokens: np.ndarray) -> np.ndarray:
    """The positions of the end-of-text tokens of a split: as they were stored, or in a folder of an
    older version from its tokens."""
    recorded = info["splits"][split].get("ends")
    if recorded is None:
        return np.flatnonzero(tokens == info["end_of_text"]).astype(ENDS)
    file = path / f"{split}.ends"
    if checksum(file) != recorded:
        raise ValueError(f"{file.name} differs from what was prepared")
    return mapped(file, ENDS)


def mapped(file: Path, dtype: np.dtype) -> np.ndarray:
    """A memory map of the numbers in a file, which may be empty."""
    if not file.stat().st_size:
        return np.empty(0, dtype)
    return np.memmap(file, dtype=dtype, mode="r")
