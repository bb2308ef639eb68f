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
            return self._stretch(*places.indices(len(self)))
        found = np.empty(places.shape, self.dtype)
        if not places.size:
            return found
        if not 0 <= places.min() <= places.max() < len(self):
            raise IndexError(f"There are tokens at the places 0 to {len(self) - 1:,} only.")
        # Row by row, as each is mostly in one shard.
        rows, into = (array.reshape(len(places), -1) for array in (places, found))
        first, last = self._shard_of(rows.min(axis=1)), self._shard_of(rows.max(axis=1))
        for number in np.unique(first[first == last]):
            here = (first == number) & (last == number)
            into[here] = self._mapped(number)[rows[here] - self.starts[number]]
        for row in np.flatnonzero(first != last):
            into[row] = self[rows[row]]
        return found

    def _stretch(self, start: int, stop: int, step: int) -> np.ndarray:
        if step != 1:
            raise IndexError("Slices of shards have the step 1.")
        parts = [np.empty(0, self.dtype)]
        while start < stop:
            number = int(self._shard_of(np.array([start]))[0])
            begin, end = self.starts[number : number + 2]
            parts.append(self._mapped(number)[start - begin : min(stop, end) - begin])
            start = end
        return np.concatenate(parts)

    def _shard_of(self, places: np.ndarray) -> np.ndarray:
        return np.searchsorted(self.starts, places, side="right") - 1

    def _mapped(self, number: int) -> np.ndarray:
        path, n_tokens = self.files[number]
        try:
            return np.memmap(path, self.dtype, mode="r", shape=(n_tokens,))
        except (OSError, ValueError) as error:  # it is gone, or shorter
            why = getattr(error, "strerror", error)
            raise RunError(
                f"The tokens of {path.parent.name} in {path.parent.parent.name!r} cannot be read "
                f"any more ({why}). Repeat the command, or resume the run, once they are back."
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
