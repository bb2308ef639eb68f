"""The files of a pack: one table per kind for all runs of a study, from which every file of every
run follows byte for byte.

    pack.json             format, runs, SHA-256 of the files next to it and of each file of the runs
    runs.jsonl            one line per run.json, model.json and other small text: path and content
    val.csv eval.csv ...  the rows of all runs; `run` and `quantized` name their run and model
    train.parquet         the same for train.csv; cells are text, so that no number is reformatted
    items.parquet         the same for items/*.csv.gz; `file` is the name before .csv.gz
    tokenizers/*.json     each tokenizer once, named by its fingerprint where run.json records it

`to_pack` and `from_pack` map contents by path to contents by path and touch no disk.
"""

import csv
import gzip
import hashlib
import io
import json
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from smollm2.errors import UserError
from smollm2.files import gzipped

FORMAT = 1
MANIFEST = "pack.json"
DOCUMENTS = "runs.jsonl"
IN_PARQUET = ("train", "items")  # long tables; the others stay readable without a library
KEYS = ("run", "quantized", "file")  # the columns that say which file a row is from
ZSTD_LEVEL = 9  # 19 takes twenty times as long and saves a tenth

# Parts of a path that are safe on every system: no separator, no leading dot, no drive.
PART = r"[A-Za-z0-9_][A-Za-z0-9._+=,@-]*"
PATH = re.compile(rf"{PART}(/{PART}){{1,4}}")
PACK_PATH = re.compile(rf"runs\.jsonl|{PART}\.(csv|parquet)|tokenizers/{PART}\.json")
TABLE_PATH = re.compile(
    rf"(?P<run>{PART})/(quantized/(?P<quantized>{PART})/)?"
    rf"((?P<table>[a-z_]+)\.csv|items/(?P<file>{PART})\.csv\.gz)"
)

Contents = dict[str, bytes]  # by path, with / between its parts
Row = list[str]


class DamagedPack(UserError):
    """A pack that differs from what was written; the message ends a sentence that names it."""


@dataclass(frozen=True)
class RowOrigin:
    """The CSV file of a run that rows of a table are from; `quantized` and `file` may be empty."""

    table: str
    run: str
    quantized: str
    file: str

    @property
    def key(self) -> tuple[str, str, str]:
        return self.run, self.quantized, self.file


@dataclass
class PackedTable:
    """Rows of many files: of each its key, its header and its rows."""

    headers: list[Row]
    parts: list[tuple[RowOrigin, Row, list[Row]]]


def origin_of(path: str) -> RowOrigin | None:
    """The table and key for rows of the file at `path`; None for a file that is not a table."""
    if not (match := TABLE_PATH.fullmatch(path)):
        return None
    run, quantized, file = (match[key] or "" for key in KEYS)
    return RowOrigin(match["table"] or "items", run, quantized, file)


def to_pack(files: Mapping[str, bytes]) -> Contents:
    """The files of a pack from the files of the runs, which are under RUN/.

    Raises:
        UserError: a file is neither a table nor text, or its name is not portable.
    """
    tables: dict[str, PackedTable] = {}
    documents: list[str] = []
    tokenizers: Contents = {}
    contents: dict[str, dict[str, Any]] = {}
    for path in sorted(files):
        if not PATH.fullmatch(path):
            raise UserError(f"{path!r} cannot be packed: its name is not portable.")
        content = decompressed(path, files[path])
        contents[path] = {"sha256": sha256(content)}
        origin, rows = origin_of(path), parse_table(content)
        if origin is not None and rows is not None:
            table = tables.setdefault(origin.table, PackedTable([], []))
            header, *body = rows
            if header not in table.headers:
                table.headers.append(header)
            contents[path]["header"] = table.headers.index(header)
            table.parts.append((origin, header, body))
        elif path.endswith("/tokenizer.json"):
            name = tokenizer_name(files, path)
            if tokenizers.get(name, content) != content:
                name = f"tokenizers/{contents[path]['sha256'][:16]}.json"
            tokenizers[name] = content
        else:
            documents.append(to_line(path, content))
    pack = tokenizers | {DOCUMENTS: "".join(documents).encode()}
    for name, table in tables.items():
        pack[f"{name}.{'parquet' if name in IN_PARQUET else 'csv'}"] = table_file(name, table)
    manifest = {
        "format": FORMAT,
        "runs": sorted({path.partition("/")[0] for path in files}),
        "files": {name: sha256(content) for name, content in sorted(pack.items())},
        "headers": {name: table.headers for name, table in sorted(tables.items())},
        "contents": contents,
    }
    return pack | {MANIFEST: (json.dumps(manifest, indent=1) + "\n").encode()}


def sha256(content: bytes) -> str:
    """The SHA-256 of some bytes, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def digest(path: str, content: bytes) -> str:
    """SHA-256 of a run's file; of a compressed one, of what it holds, for the compressed bytes
    depend on the version of zlib."""
    return sha256(decompressed(path, content))


def decompressed(path: str, content: bytes) -> bytes:
    """What the file at `path` holds.

    Raises:
        UserError: it is compressed and damaged.
    """
    try:
        return gzip.decompress(content) if path.endswith(".gz") else content
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be packed: it is damaged ({error}).") from None


def parse_table(content: bytes) -> list[Row] | None:
    """Header and rows of a CSV file, None where they would not give the same file again."""
    try:
        text = content.decode()
        rows = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except (UnicodeDecodeError, csv.Error):
        return None
    header = rows[0] if rows else []
    is_table = (
        len(set(header)) == len(header) > 0
        and not set(header) & set(KEYS)
        and all(len(row) == len(header) for row in rows)
        and to_csv(rows) == text
    )
    return rows if is_table else None


def to_csv(rows: list[Row]) -> str:
    """Rows as every table of a run is written."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def tokenizer_name(files: Mapping[str, bytes], path: str) -> str:
    """The path in the pack of the tokenizer at `path`."""
    run = path.partition("/")[0]
    try:
        manifest = json.loads(files[f"{run}/run.json"])
        name = manifest["protocol"]["data"]["tokenizer_fingerprint"]
        named = f"tokenizers/{name}.json"
    except (KeyError, TypeError, ValueError, RecursionError):
        named = ""
    return named if PACK_PATH.fullmatch(named) else f"tokenizers/{sha256(files[path])[:16]}.json"


def to_line(path: str, content: bytes) -> str:
    """The line of a small file: its content as JSON where that gives the same bytes, else as text.

    Raises:
        UserError: it is not text.
    """
    try:
        text = content.decode()
    except UnicodeDecodeError:
        raise UserError(f"{path} cannot be packed: it is neither a table nor text.") from None
    value: Any = text
    try:
        parsed = json.loads(text)
        if isinstance(parsed, dict) and document(parsed) == content:
            value = parsed
    except (ValueError, RecursionError):
        pass  # not JSON: stays text
    return json.dumps({"path": path, "content": value}) + "\n"


def document(value: Any) -> bytes:
    """The bytes of a small file from the content of its line."""
    return (value if isinstance(value, str) else json.dumps(value, indent=2) + "\n").encode()


def table_file(name: str, table: PackedTable) -> bytes:
    """One file for the rows of all runs; a cell whose column a run lacks is empty."""
    keys = [origin.key for origin, _, body in table.parts if body]
    used = [i for i, _ in enumerate(KEYS) if i == 0 or any(key[i] for key in keys)]
    columns = list(dict.fromkeys(column for header in table.headers for column in header))
    rows = []
    for origin, header, body in table.parts:
        key = [origin.key[i] for i in used]
        at = [header.index(column) if column in header else len(header) for column in columns]
        rows += [[*key, *map((*cells, "").__getitem__, at)] for cells in body]
    header = [KEYS[i] for i in used] + columns
    if name in IN_PARQUET:
        return to_parquet(header, rows)
    return to_csv([header, *rows]).encode()


def to_parquet(header: Row, rows: list[Row]) -> bytes:
    """A table of text columns; empty cells are null."""
    import pyarrow as pa  # half a second
    import pyarrow.parquet as pq

    columns = zip(*rows, strict=True) if rows else ([] for _ in header)
    arrays = [pa.array([cell or None for cell in column], pa.string()) for column in columns]
    file = io.BytesIO()
    pq.write_table(
        pa.Table.from_arrays(arrays, header),
        file,
        compression="zstd",
        compression_level=ZSTD_LEVEL,
        use_dictionary=list(KEYS),
    )
    return file.getvalue()


def from_parquet(content: bytes) -> tuple[Row, list[Row]]:
    """Header and rows of a table of text columns."""
    import pyarrow.parquet as pq

    table = pq.read_table(io.BytesIO(content))
    columns = [column.to_pylist() for column in table.columns]
    return table.column_names, [[cell or "" for cell in row] for row in zip(*columns, strict=True)]


@dataclass(frozen=True)
class PackManifest:
    """pack.json, checked."""

    runs: tuple[str, ...]
    files: dict[str, str]
    headers: dict[str, list[Row]]
    contents: dict[str, dict[str, Any]]


def read_pack_manifest(content: bytes) -> PackManifest:
    """pack.json as it was written.

    Raises:
        DamagedPack: it is something else, of a later version, or has a path that leads elsewhere.
    """
    damaged = DamagedPack(f"is damaged: {MANIFEST} is not what was written")
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        raise damaged from None
    version = found.get("format") if isinstance(found, dict) else None
    if isinstance(version, int) and version > FORMAT:
        raise DamagedPack(f"has format {version!s:.20}, and this version reads up to {FORMAT}")
    try:
        runs = tuple(map(str, found["runs"]))
        manifest = PackManifest(
            runs, dict(found["files"]), found["headers"], dict(found["contents"])
        )
        is_ours = (
            version == FORMAT
            and all(map(PATH.fullmatch, manifest.contents))
            and all(map(PACK_PATH.fullmatch, manifest.files))
            and {path.partition("/")[0] for path in manifest.contents} == set(runs)
        )
    except (ValueError, KeyError, TypeError):
        raise damaged from None
    if not is_ours:
        raise damaged
    return manifest


def require_whole(manifest: PackManifest, pack: Mapping[str, bytes]) -> None:
    """Raise `DamagedPack` if a file next to pack.json is missing or altered."""
    for name, expected in manifest.files.items():
        if name not in pack:
            raise DamagedPack(f"is damaged: it has no {name}")
        if sha256(pack[name]) != expected:
            raise DamagedPack(f"is damaged: {name} is not what was written")


def from_pack(pack: Mapping[str, bytes]) -> Contents:
    """The files of the runs, checked against their SHA-256.

    Raises:
        DamagedPack: a file is missing or altered, or `read_pack_manifest` raises.
    """
    manifest = read_pack_manifest(pack[MANIFEST])
    require_whole(manifest, pack)
    try:
        files = {
            path: gzipped(content) if path.endswith(".gz") else content
            for path, content in restored(manifest, pack).items()
        }
        wrong = [path for path, content in files.items() if not matches(manifest, path, content)]
    except Exception as error:  # a parser may raise anything on a crafted file
        raise DamagedPack(f"is damaged: {type(error).__name__} while it was read") from None
    if wrong:
        raise DamagedPack(f"is damaged: {wrong[0]} does not follow from it")
    return files


def matches(manifest: PackManifest, path: str, content: bytes) -> bool:
    """Whether a file of a run is what was packed."""
    return bool(digest(path, content) == manifest.contents[path]["sha256"])


def manifests(pack: Mapping[str, bytes]) -> list[dict[str, Any]]:
    """The run.json of every run that has a readable one.

    Raises:
        DamagedPack: a run.json is invalid.
    """
    try:
        lines = [json.loads(line) for line in pack[DOCUMENTS].decode().splitlines()]
        found = [line["content"] for line in lines if line["path"].endswith("/run.json")]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise DamagedPack(f"is damaged: {DOCUMENTS} is not what was written") from None
    return [manifest for manifest in found if isinstance(manifest, dict)]


def restored(manifest: PackManifest, pack: Mapping[str, bytes]) -> Contents:
    """What the files of the runs hold, uncompressed and not yet checked."""
    tokenizers = {manifest.files[name]: pack[name] for name in pack if "/" in name}
    lines = map(json.loads, pack[DOCUMENTS].decode().splitlines())
    documents = {line["path"]: document(line["content"]) for line in lines}
    rows = {name: rows_by_file(name, pack) for name in manifest.headers}
    files: Contents = {}
    for path, entry in manifest.contents.items():
        if (origin := origin_of(path)) is not None and "header" in entry:
            header = manifest.headers[origin.table][entry["header"]]
            columns, by_file = rows[origin.table]
            at = [columns.index(column) for column in header]
            found = by_file.get(origin.key, [])
            text = to_csv([header, *([cells[i] for i in at] for cells in found)])
            files[path] = text.encode()
        elif path.endswith("/tokenizer.json"):
            files[path] = tokenizers[entry["sha256"]]
        else:
            files[path] = documents[path]
    return files


def rows_by_file(
    name: str, pack: Mapping[str, bytes]
) -> tuple[Row, dict[tuple[str, ...], list[Row]]]:
    """The columns of a table of the pack, and its rows by the key of the file they are from."""
    if name in IN_PARQUET:
        header, rows = from_parquet(pack[f"{name}.parquet"])
    else:
        text = io.StringIO(pack[f"{name}.csv"].decode(), newline="")
        header, *rows = csv.reader(text, strict=True)
    at = [header.index(key) if key in header else len(header) for key in KEYS]
    files: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        key = tuple((*row, "")[i] for i in at)
        files.setdefault(key, []).append(row)
    return header, files
