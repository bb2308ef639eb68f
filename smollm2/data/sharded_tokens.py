"""The tokens of many files as one sequence."""

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from smollm2.errors import RunError
from smollm2.files import cache_dir, checksum, make_folder, replace_file
from smollm2.leftovers import host


class ShardedTokens:
    """Files of tokens that are read as if they were one array, `dtype [tokens]`: its length,
    slices, and the tokens at an array of places.

    A file is mapped only while it is read, so neither memory nor open files grow with the shards.

    Args:
        files: in order, with the number of tokens of each.
    """

    def __init__(self, files: Sequence[tuple[Path, int]], dtype: np.dtype) -> None:
        self.files, self.dtype = files, dtype
        self.starts = np.cumsum([0, *(n_tokens for _, n_tokens in files)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, places: slice | np.ndarray) -> np.ndarray:
        if isinstance(places, slice):
            places = np.arange(*places.indices(len(self)))
        flat = places.ravel()
        if len(flat) and not 0 <= flat.min() <= flat.max() < len(self):
            raise IndexError(f"There are tokens at the places 0 to {len(self) - 1:,} only.")
        numbers = np.searchsorted(self.starts, flat, side="right") - 1
        found = np.empty(len(flat), self.dtype)
        for number in np.unique(numbers):
            here = numbers == number
            found[here] = self._mapped(number)[flat[here] - self.starts[number]]
        return found.reshape(places.shape)

    def _mapped(self, number: int) -> np.ndarray:
        path, n_tokens = self.files[number]
        try:
            return np.memmap(path, self.dtype, mode="r", shape=(n_tokens,))
        except (OSError, ValueError) as error:  # it is gone, or shorter
            raise RunError(
                f"The tokens of {path.parent.name} in {path.parent.parent.name!r} cannot be read "
                f"any more ({error}). Repeat the command, or resume the run, once they are back."
            ) from error


Tokens = np.ndarray | ShardedTokens


def shard_path(folder: Path, number: int) -> Path:
    """The folder of a shard."""
    return folder / f"shard-{number:05}"


def open_shards(path: Path, info: dict[str, Any]) -> tuple[ShardedTokens, list[bytes]]:
    """The training tokens of a folder of shards, and the SHA-256 of each shard.

    The files are compared with these once on a machine, and again if one has another size or time:
    a note in the cache says that it was done.

    Raises:
        ValueError: a file has changed.
        OSError: it cannot be read.
    """
    dtype = np.dtype(info["dtype"])
    files = [
        (shard_path(path, number) / "train.bin", shard["tokens"])
        for number, shard in enumerate(info["shards"])
    ]
    stats = [file.stat() for file, _ in files]
    for (file, n_tokens), stat in zip(files, stats, strict=True):
        if stat.st_size != n_tokens * dtype.itemsize:
            raise ValueError(f"{file.parent.name}/{file.name} has {stat.st_size:,} bytes")
    hashes = [shard["sha256"] for shard in info["shards"]]
    seen = [hashes, [(stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in stats]]
    key = hashlib.sha256(json.dumps(seen).encode()).hexdigest()[:32]
    note = cache_dir() / "verified" / f"{host()}-{key}"
    if not note.is_file():
        for (file, _), expected in zip(files, hashes, strict=True):
            if checksum(file) != expected:
                raise ValueError(f"{file.parent.name}/{file.name} differs from what was prepared")
        with suppress(OSError):  # the cache may be read-only: then they are compared each time
            make_folder(note.parent)
            replace_file(note, f"{path.name}\n")
    return ShardedTokens(files, dtype), [bytes.fromhex(each) for each in hashes]
