"""Text in a file, or in the files of a folder: plain, JSONL or Parquet, compressed or not."""

import json
from collections.abc import Callable, Iterator
from functools import partial

from smollm2.data.corpus_files import corpus_files
from smollm2.data.corpus_kind import CorpusKind
from smollm2.data.file_parts import FilePart, part_documents, sliced


def file_documents(source: str) -> Iterator[str]:
    """The documents of each file."""
    return part_documents(map(FilePart, corpus_files(source).paths))


def file_identity(source: str) -> str:
    """The paths, sizes and times of the files."""
    stats = [(str(path.resolve()), path.stat()) for path in corpus_files(source).paths]
    return json.dumps([(path, stat.st_size, stat.st_mtime_ns) for path, stat in stats])


def files_not_read(source: str) -> str | None:
    """What of a folder is not read."""
    return corpus_files(source).not_read


def file_slices(source: str, n: int) -> list[Callable[[], Iterator[str]]]:
    """See `sliced`."""
    paths = corpus_files(source).paths
    slices = sliced([(path, path.stat().st_size) for path in paths], n)
    return [partial(part_documents, parts) for parts in slices]


KIND = CorpusKind(
    prefix="",
    spelling="a file or folder",
    read=file_documents,
    identity=file_identity,
    not_read=files_not_read,
    slices=file_slices,
)
