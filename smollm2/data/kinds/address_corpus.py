"""Files at an address that fsspec reads, such as s3://BUCKET/NAME or hf://datasets/ORG/NAME."""

import io
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import Any, BinaryIO, Literal, cast

from smollm2.data.corpus_files import EXPECTED, file_format, not_about_the_data
from smollm2.data.corpus_kind import CorpusKind
from smollm2.data.file_parts import FilePart, part_documents, sliced
from smollm2.errors import UserError, reason

ADDRESS = re.compile(r"([a-z][a-z0-9+.-]*)://")
READ_BYTES = 2**20  # at a time


class AddressKind(CorpusKind):
    """The kind of every source with a protocol."""

    def names(self, source: str) -> bool:
        """Whether `source` begins with a protocol and `://`."""
        return ADDRESS.match(source) is not None


@dataclass(frozen=True)
class RemoteFile:
    """A file of an fsspec file system.

    Args:
        facts: what the file system says of it.
    """

    system: Any
    path: str
    facts: dict[str, Any]

    @property
    def name(self) -> str:
        return PurePosixPath(self.path).name

    @property
    def n_bytes(self) -> int:
        return int(self.facts["size"])

    def open(self, mode: Literal["rb"]) -> BinaryIO:
        # Files of fsspec read lines of any length only.
        return cast(BinaryIO, io.BufferedReader(self.system.open(self.path, mode), READ_BYTES))


def address_documents(source: str) -> Iterator[str]:
    """The documents of the file, or of each file below the address."""
    return _reached(source, map(FilePart, remote_files(source)))


def address_slices(source: str, n: int) -> list[Callable[[], Iterator[str]]]:
    """See `sliced`."""
    slices = sliced([(file, file.n_bytes) for file in remote_files(source)], n)
    return [partial(_reached, source, parts) for parts in slices]


def address_identity(source: str) -> str:
    """The paths of the files, and what the file system says of them, such as sizes and times."""
    return json.dumps([(file.path, repr(file.facts)) for file in remote_files(source)])


def remote_files(source: str) -> list[RemoteFile]:
    """The files at an address, sorted by path: of a folder those of known formats, without hidden
    ones and those that describe the data.

    Raises:
        UserError: a package is missing, the address cannot be reached, or it holds no text.
    """
    try:
        system, root = _file_system(source)
        facts = system.info(root)
        found = {root: facts} if facts["type"] == "file" else system.find(root, detail=True)
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"There is nothing at {source}: check the address.") from error
    except Exception as error:  # of the file system or its network library: no common class
        raise _unreachable(source, error) from error
    paths = {
        PurePosixPath(path): path
        for path in found
        if file_format(PurePosixPath(path)) and "/." not in path.removeprefix(root)
    }
    read, _ = not_about_the_data(sorted(paths))
    if not read:
        raise UserError(f"There is no text at {source}: {EXPECTED}.")
    return [RemoteFile(system, paths[path], found[paths[path]]) for path in read]


def _file_system(source: str) -> tuple[Any, str]:
    """The file system of an address, and the path in it."""
    try:
        import fsspec
        from fsspec.registry import known_implementations
    except ImportError as error:
        raise UserError(f"Reading {source} needs `pip install fsspec`.") from error
    match = ADDRESS.match(source)
    protocol = match[1] if match else ""
    try:
        system, root = fsspec.core.url_to_fs(source)
    except ImportError as error:
        package = known_implementations[protocol]["class"].split(".")[0]
        name = f"'fsspec[{protocol}]'" if package == "fsspec" else package
        raise UserError(f"Reading {source} needs `pip install {name}`.") from error
    except ValueError as error:
        if protocol in known_implementations:
            raise
        raise UserError(
            f"No protocol {protocol}:// is known for {source}: expected one of fsspec, such as "
            "s3://, gs:// or hf://."
        ) from error
    return system, root.rstrip("/")


def _reached(source: str, parts: Iterator[FilePart] | list[FilePart]) -> Iterator[str]:
    try:
        yield from part_documents(parts)
    except UserError:
        raise
    except Exception as error:  # as in `remote_files`
        raise _unreachable(source, error) from error


def _unreachable(source: str, error: Exception) -> UserError:
    return UserError(
        f"Cannot read {source} ({type(error).__name__}: {reason(error)}). Check the address, the "
        "network and your access to it, or fetch the files and name their folder."
    )


KIND = AddressKind(
    prefix="://",
    spelling="s3://BUCKET/NAME",
    read=address_documents,
    identity=address_identity,
    slices=address_slices,
    is_unbounded=True,
)
