"""A prepared folder, opened read-only."""

import hashlib
import itertools
import math
import os
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from smollm2.data.byte_account import token_bytes
from smollm2.data.corpora import is_path
from smollm2.data.ngram import Floors, count_floors, floors_between
from smollm2.data.split_files import ENDS
from smollm2.data.splits import HELD_OUT, MOST_HELD_OUT, SPLITS
from smollm2.data.tokenizer import load_tokenizer, tokenizer_fingerprint
from smollm2.errors import UserError, reason
from smollm2.files import cache_dir, checksum
from smollm2.parse import Unreadable, read_json

FORMAT = 1
READ_BYTES = 8 * 2**20  # at a time


@dataclass(frozen=True)
class TokenData:
    """A prepared folder, opened read-only.

    The token arrays are memory maps, `uint16 [tokens]` for up to 65,536 token ids, else
    `uint32`; each document ends with `end_of_text`. `documents` and `n_bytes` (of UTF-8 text) count
    per split; `ends` has the positions of the end-of-text tokens of validation and test, `int64`.
    `fingerprint` is of the tokens and `tokenizer_fingerprint` of the tokenizer, 16 hex
    digits each; `token_bytes` is as that function. `notes` are sentences for the user: what of the
    source is not in the tokens. `recorded_floors` are those of `count_floors`; None in a folder of
    an older version. `held_out` is the share of the documents for validation, and again for test.
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
    train: np.ndarray
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

    All tokens are read once, to compare them with their fingerprint.

    Raises:
        UserError: it is not such a folder, or a file in it is missing or damaged.
    """
    try:
        info = _read_info(path)
        tokenizer = load_tokenizer(str(path))
        if tokenizer_fingerprint(tokenizer) != info["tokenizer_fingerprint"]:
            raise ValueError("tokenizer.json is not the tokenizer of its tokens")
        sizes = token_bytes(tokenizer, info["end_of_text"])
        if not info["end_of_text"] < info["vocab_size"] == len(sizes):
            raise ValueError(f"its tokenizer has {len(sizes):,} tokens")
        read = {split: _tokens(path, info, split) for split in SPLITS}
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
    if tokens_fingerprint([digest for _, digest in read.values()]) != data.fingerprint:
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


def tokens_fingerprint(digests: list[bytes]) -> str:
    """One fingerprint from the SHA-256 of each split, in the order of SPLITS."""
    return hashlib.sha256(b"".join(digests)).hexdigest()[:16]


def _read_info(path: Path) -> dict[str, Any]:
    """The content of data.json, with its types checked.

    Raises:
        UserError: it cannot be read, or is of another version.
        ValueError: a field is missing or of another type.
    """
    info = read_json(path / "data.json")
    if info.get("format") != FORMAT:
        raise UserError(
            f"{path.name!r} was prepared by another version (format {info.get('format')!r:.20}, "
            f"expected {FORMAT}): prepare it again from its source."
        )
    splits = info.get("splits")
    counts = [splits.get(split) for split in SPLITS] if isinstance(splits, dict) else [None]
    notes = info.get("notes", [])
    right = {
        "source": isinstance(info.get("source"), str),
        "fingerprint": _is_fingerprint(info.get("fingerprint")),
        "tokenizer_fingerprint": _is_fingerprint(info.get("tokenizer_fingerprint")),
        "vocab_size": _is_count(info.get("vocab_size")),
        "end_of_text": _is_count(info.get("end_of_text")),
        "dtype": info.get("dtype") in ("uint16", "uint32"),
        "splits": all(
            isinstance(each, dict)
            and all(_is_count(each.get(field)) for field in ("tokens", "documents", "bytes"))
            and isinstance(each.get("ends", ""), str)
            for each in counts
        ),
        "notes": isinstance(notes, list) and all(isinstance(note, str) for note in notes),
        "floors": _are_floors(info.get("floors", [])),
        "held_out": _is_share(info.get("held_out", HELD_OUT)),
    }
    if wrong := [field for field, is_right in right.items() if not is_right]:
        raise ValueError(f"data.json: {wrong[0]} is missing or not what `prepare` writes")
    return info


def _recorded_floors(info: dict[str, Any]) -> tuple[Floors, ...] | None:
    return tuple(Floors(**each) for each in info["floors"]) if "floors" in info else None


def _are_floors(value: object) -> bool:
    """Whether these are floors of sizes that grow."""
    names = ["tokens", "unigram", "trigram"]
    if not isinstance(value, list) or any(
        not isinstance(each, dict) or sorted(each) != sorted(names) for each in value
    ):
        return False
    sizes = [each["tokens"] for each in value]
    losses = [each[name] for each in value for name in names[1:]]
    return (
        all(_is_count(size) and size > 0 for size in sizes)
        and all(one < other for one, other in itertools.pairwise(sizes))
        and all(type(loss) in (int, float) and 0 <= loss < math.inf for loss in losses)
    )


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_share(value: object) -> bool:
    return isinstance(value, float) and 0 < value <= MOST_HELD_OUT


def _is_fingerprint(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{16}", value) is not None


def _damaged(path: Path, why: str) -> UserError:
    return UserError(
        f"The prepared folder {path.name!r} is incomplete or damaged ({why}): prepare it again "
        "from its source."
    )


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
