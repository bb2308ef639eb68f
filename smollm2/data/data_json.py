"""What data.json of a prepared folder says."""

import hashlib
import itertools
import math
import platform
import re
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from smollm2.data.corpora import corpus_kind, source_name
from smollm2.data.splits import HELD_OUT, MOST_HELD_OUT, SPLITS
from smollm2.data.tokenizer import tokenizer_fingerprint
from smollm2.errors import UserError
from smollm2.files import write_json
from smollm2.parse import read_json

FORMAT, SHARDED = 1, 2  # of a folder with one file for each split, and of one in shards


def write_info(
    path: Path,
    source: str,
    tokenizer: Tokenizer,
    *,
    dtype: np.dtype,
    **fields: Any,
) -> None:
    """Write data.json, which makes a folder a prepared one.

    Args:
        fields: those that are written as they are; they may replace the others.
    """
    info = {
        "format": FORMAT,
        "source": source_name(source),
        "python": platform.python_version() if corpus_kind(source).follows_python else None,
        "tokenizer_fingerprint": tokenizer_fingerprint(tokenizer),
        "dtype": dtype.name,
    }
    write_json(path / "data.json", info | fields)


def tokens_fingerprint(digests: list[bytes]) -> str:
    """One fingerprint from the SHA-256 of each split, in the order of SPLITS; that of a training
    split in shards is of each shard."""
    return hashlib.sha256(b"".join(digests)).hexdigest()[:16]


def read_info(path: Path) -> dict[str, Any]:
    """The content of data.json, with its types checked.

    Raises:
        UserError: it cannot be read, or is of another version.
        ValueError: a field is missing or of another type.
    """
    info = read_json(path / "data.json")
    if info.get("format") != (SHARDED if "shards" in info else FORMAT):
        raise UserError(
            f"{path.name!r} was prepared by another version (format {info.get('format')!r:.20}): "
            "prepare it again from its source."
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
        "shards": _are_shards(info.get("shards")),
    }
    if wrong := [field for field, is_right in right.items() if not is_right]:
        raise ValueError(f"data.json: {wrong[0]} is missing or not what `prepare` writes")
    return info


def _are_shards(value: object) -> bool:
    """Whether these are the tokens and hashes of shards; None in a folder without."""
    if value is None:
        return True
    return isinstance(value, list) and all(
        isinstance(each, dict) and _is_count(each.get("tokens")) and _is_sha256(each.get("sha256"))
        for each in value
    )


def _is_sha256(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


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
