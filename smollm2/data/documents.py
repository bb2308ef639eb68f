"""Where text comes from: the standard library, files and folders, or the Hugging Face hub.

A *source* is one string: `builtin`, a file, a folder, `smollm-corpus` or `hub:ORG/NAME[/CONFIG]`.
"""

import gzip
import io
import json
import os
import sys
import sysconfig
import zlib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, BinaryIO, cast

from smollm2.data.hub import require_on_hub
from smollm2.errors import UserError, did_you_mean

TEXT_STRETCH = 64 * 2**20  # bytes; a longer text file is read as several documents of this size
ALIASES = {"smollm-corpus": "hub:HuggingFaceTB/smollm-corpus/cosmopedia-v2"}
WITHOUT_HUB = "use a local file or folder, or `--data builtin`"
FORMATS = (".txt", ".md", ".jsonl", ".parquet")
READ = "expected .txt, .md, .jsonl (each also .gz or .zst) or .parquet"

# Tests hold deliberately broken files, `encodings` is tables of numbers, and idlelib and lib2to3
# are not in every installation.
STDLIB_SKIPPED = {
    "site-packages",
    "dist-packages",
    "test",
    "tests",
    "encodings",
    "idlelib",
    "lib2to3",
}


def documents(source: str) -> Iterator[str]:
    """The documents of `source` in a fixed order, those of only whitespace left out.

    Nothing is held in memory but the document at hand, and a further call starts again.

    Raises:
        UserError: at once where `source` does not exist or cannot be read at all; from the
            iterator, naming file and line, at the first broken record, and at the end of a
            source which held no text.
    """
    source = ALIASES.get(source, source)
    texts: Iterator[str]
    if source == "builtin":
        texts = (path.read_bytes().decode() for path in stdlib_files())
    elif source.startswith("hub:"):
        texts = _hub_documents(*_hub_parts(source))
    else:
        texts = (text for path in source_files(source) for text in _file_documents(path))
    return _not_empty(texts, source_name(source))


def source_name(source: str) -> str:
    """What a manifest calls `source`: `builtin`, the full `hub:` name, or the file's base name."""
    source = ALIASES.get(source, source)
    return Path(source).resolve().name if is_path(source) else source


def is_unbounded(source: str) -> bool:
    """Whether `source` streams from the hub, where a corpus may have no end worth waiting for."""
    return ALIASES.get(source, source).startswith("hub:")


def is_path(source: str) -> bool:
    """Whether `source` is a file or folder, there or not."""
    return source != "builtin" and not is_unbounded(source)


def source_identity(source: str) -> str:
    """A string that changes when the content of `source` might have: file sizes and times.

    A hub source is its name: what is prepared from it stays what it was when first read.
    """
    source = ALIASES.get(source, source)
    if source == "builtin":
        sizes = [(path.name, path.stat().st_size) for path in stdlib_files()]
        return json.dumps([source, sys.version, sizes])
    if is_unbounded(source):
        return source
    stats = [(str(path.resolve()), path.stat()) for path in source_files(source)]
    return json.dumps([(path, stat.st_size, stat.st_mtime_ns) for path, stat in stats])


def stdlib_files() -> list[Path]:
    """This Python's own library sources that are UTF-8, sorted, without tests (about 12 MB)."""
    root = Path(sysconfig.get_path("stdlib"))
    files = [path for path in _walk(root, STDLIB_SKIPPED, (".py",)) if _is_utf8(path)]
    if not files:
        raise UserError(
            "This Python comes without the sources of its standard library, so there is no "
            "built-in corpus: name a text file or a folder with --data."
        )
    return files


def source_files(source: str) -> list[Path]:
    """The files of a file or folder `source`, sorted; in a folder hidden files are skipped."""
    path = Path(source)
    if path.is_file():
        if _format(path) is None:
            raise UserError(f"Cannot read {path.name!r} as text: {READ}.")
        return [path]
    if not path.exists():
        near = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserError(
            f"There is no file or folder {source!r}.{did_you_mean(path.name, near)} Give a file, a "
            "folder, hub:ORG/NAME, or `--data builtin` for text that is on every machine."
        )
    files = _walk(path, set(), (*FORMATS, ".gz", ".zst"))
    files = [file for file in files if _format(file)]
    if not files:
        raise UserError(f"No text in the folder {path.resolve().name!r}: {READ} in it.")
    return files


def _walk(root: Path, skipped: set[str], endings: tuple[str, ...]) -> list[Path]:
    found = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in skipped and name[0] != "."]
        wanted = [name for name in names if name.endswith(endings) and name[0] != "."]
        found += [Path(folder, name) for name in wanted]
    return sorted(found)


def _is_utf8(path: Path) -> bool:
    try:
        path.read_bytes().decode()
    except UnicodeDecodeError:
        return False
    return True


def _format(path: Path) -> str | None:
    """`.txt`, `.md`, `.jsonl` or `.parquet`, without the compression; None if unsupported."""
    compressed = path.suffix in (".gz", ".zst")
    suffix = Path(path.stem).suffix if compressed else path.suffix
    return suffix if suffix in FORMATS and not (compressed and suffix == ".parquet") else None


def _not_empty(texts: Iterator[str], name: str) -> Iterator[str]:
    empty = True
    for text in texts:
        if text and not text.isspace():
            empty = False
            yield text
    if empty:
        raise UserError(f"There is no text in {name!r}: expected at least one document.")


# Files


def _file_documents(path: Path) -> Iterator[str]:
    readers = {".jsonl": _jsonl_file, ".parquet": _parquet_file}
    try:
        yield from readers.get(_format(path) or "", _text_file)(path)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(
            f"Cannot read {path.name!r} ({error}): expected a whole, readable file. Fetch or "
            "compress it again."
        ) from error


def _open(path: Path) -> BinaryIO:
    if path.suffix == ".gz":
        return cast(BinaryIO, gzip.open(path))
    if path.suffix == ".zst":
        pyarrow = _pyarrow(path)
        return io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"))
    return path.open("rb")


def _text_file(path: Path) -> Iterator[str]:
    """The whole file, or stretches of 64 MB of it, each cut after whitespace."""
    rest, line = b"", 1
    with closing(_open(path)) as file:
        while data := rest + file.read(TEXT_STRETCH - len(rest)):
            end = _stretch_end(data) if len(data) == TEXT_STRETCH else len(data)
            yield _decoded(data[:end], path, line)
            rest, line = data[end:], line + data.count(b"\n", 0, end)


def _stretch_end(data: bytes) -> int:
    """Where to cut: after the last whitespace, else before the last UTF-8 character."""
    end = max(data.rfind(space) for space in (b" ", b"\n", b"\t")) + 1
    if end == 0:
        end = len(data) - 1
        while end > 1 and data[end] & 0xC0 == 0x80:
            end -= 1
    return end


def _decoded(data: bytes, path: Path, line: int) -> str:
    """`data`, which starts on line `line` of `path`, as text."""
    if b"\0" in data:
        line += data.count(b"\n", 0, data.index(b"\0"))
        raise UserError(f"{path.name!r} is a binary file (a zero byte on line {line}): {READ}.")
    try:
        return data.decode("utf-8-sig" if line == 1 else "utf-8")
    except UnicodeDecodeError as error:
        line += data.count(b"\n", 0, error.start)
        raise UserError(
            f"{path.name!r} is not UTF-8 text (line {line}): convert it first, for example with "
            "`iconv -f latin1 -t utf-8`."
        ) from error


def _jsonl_file(path: Path) -> Iterator[str]:
    with closing(_open(path)) as file:
        for number, line in enumerate(file, 1):
            if not line.isspace():
                yield _json_text(_decoded(line, path, number), f"{path.name!r}, line {number}")


def _json_text(line: str, where: str) -> str:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f'{where}: broken JSON ({error}); expected one object a line, as {{"text": "..."}}.'
        ) from error
    text = record.get("text") if isinstance(record, dict) else None
    if not isinstance(text, str):
        fields = ", ".join(record) if isinstance(record, dict) else type(record).__name__
        raise UserError(
            f"{where}: expected an object with a string in the field `text`, found "
            f"{fields or 'no field'}. Rename the field that holds the text."
        )
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"{where}: `text` holds half of a surrogate pair ({error.object[error.start]!r}), "
                "which is no character; remove it."
            ) from error
    return text


def _parquet_file(path: Path) -> Iterator[str]:
    pyarrow = _pyarrow(path)
    import pyarrow.parquet as parquet

    try:
        with parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            kind = schema.field("text").type if "text" in schema.names else None
            if kind not in (pyarrow.string(), pyarrow.large_string()):
                raise UserError(
                    f"{path.name!r}: expected a string column `text`, found the columns "
                    f"{', '.join(schema.names)}. Rename the column that holds the text."
                )
            for rows in file.iter_batches(batch_size=256, columns=["text"]):
                yield from (text or "" for text in rows.column(0).to_pylist())
    except pyarrow.ArrowException as error:
        raise UserError(
            f"{path.name!r} is not a readable Parquet file ({error}); fetch it again."
        ) from error


def _pyarrow(path: Path) -> Any:
    try:
        import pyarrow
    except ImportError as error:
        raise UserError(
            f"Reading {path.name!r} needs pyarrow: `pip install datasets`, or use .jsonl.gz."
        ) from error
    return pyarrow


# The hub


def _hub_parts(source: str) -> tuple[str, str | None]:
    parts = source.removeprefix("hub:").split("/", 2)
    if len(parts) < 2 or not all(parts):
        raise UserError(
            f"{source!r} names no data set: expected hub:ORG/NAME or hub:ORG/NAME/CONFIG, for "
            "example hub:roneneldan/TinyStories."
        )
    return "/".join(parts[:2]), parts[2] if len(parts) == 3 else None


def _hub_documents(repo: str, config: str | None) -> Iterator[str]:
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            f"Reading from the hub needs `pip install datasets`; or {WITHOUT_HUB}."
        ) from error
    require_on_hub(repo, "dataset", WITHOUT_HUB)
    datasets.disable_progress_bars()
    try:
        for row in datasets.load_dataset(repo, config, split="train", streaming=True):
            if not isinstance(row.get("text"), str):
                raise UserError(
                    f"The hub data set {repo!r} has no text column `text` but {', '.join(row)}; "
                    "choose another one, or another configuration: hub:ORG/NAME/CONFIG."
                )
            yield row["text"]
    except UserError:
        raise
    except Exception as error:  # of datasets, the hub, fsspec or the HTTP library: no common class
        raise UserError(
            f"Cannot read the data set {repo!r} from the hub ({type(error).__name__}: {error}). "
            f"Try hub:ORG/NAME/CONFIG with a configuration it has, or {WITHOUT_HUB}."
        ) from error
