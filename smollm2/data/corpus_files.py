"""The files of a corpus, and what beside them is not read."""

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import NoReturn, TypeVar

from smollm2.errors import UserError, first_few

FORMATS = (".txt", ".md", ".jsonl", ".parquet")
EXPECTED = "expected .txt, .md, .jsonl (each also .gz or .zst) or .parquet"
# They describe the data beside them; among documents of their own format they are text.
ABOUT_THE_DATA = {"readme", "license", "licence", "copying", "notice"}
LINKED, SPECIAL = "linked folders", "special files"
OTHER, ABOUT, HIDDEN = "files with other endings", "files about the data", "hidden files"
NOT_MISSED = ""
P = TypeVar("P", bound=PurePath)


@dataclass(frozen=True)
class CorpusFiles:
    """What of a source is read.

    Args:
        paths: regular files of a known format, sorted.
        not_read: a sentence of bounded length that names what is skipped; None if nothing is.
    """

    paths: list[Path]
    not_read: str | None


def corpus_files(source: str) -> CorpusFiles:
    """The files of `source`, which is a file or a folder. A folder is read recursively, without
    hidden files and without following links to folders.

    Raises:
        UserError: it holds no text, or a part of it cannot be read.
    """
    root = Path(source)
    if root.is_dir():
        return _in_folder(root)
    if not root.is_file():
        raise UserError(
            f"{root.name!r} is neither a file nor a folder, but a pipe, a device or a socket: "
            "save the text to a file first."
        )
    if file_format(root) is None:
        raise UserError(f"Cannot read {root.name!r} as text: {EXPECTED}.")
    return CorpusFiles([root], None)


def is_compressed(path: PurePath) -> bool:
    """Whether the name ends with `.gz` or `.zst`, in any case."""
    return path.suffix.lower() in (".gz", ".zst")


def file_format(path: PurePath) -> str | None:
    """`.txt`, `.md`, `.jsonl` or `.parquet`, without the compression; None if unsupported."""
    compressed = is_compressed(path)
    suffix = (PurePath(path.stem) if compressed else path).suffix.lower()
    return suffix if suffix in FORMATS and not (compressed and suffix == ".parquet") else None


def _in_folder(root: Path) -> CorpusFiles:
    name = root.resolve().name
    paths: list[Path] = []
    skipped: dict[str, list[str]] = {}
    for folder, folders, names in os.walk(root, onerror=_refuse):
        for entry in sorted(folders):
            if entry[0] != "." and os.path.islink(os.path.join(folder, entry)):
                skipped.setdefault(LINKED, []).append(entry)
        folders[:] = [entry for entry in folders if entry[0] != "."]
        for entry in sorted(names):
            path = Path(folder, entry)
            reason = _reason_to_skip(path)
            if reason is None:
                paths.append(path)
            elif reason != NOT_MISSED:
                skipped.setdefault(reason, []).append(entry)
    paths, about = not_about_the_data(paths)
    if about:
        skipped[ABOUT] = sorted(path.name for path in about)
    not_read = _sentence(name, skipped)
    if not paths:
        raise UserError(
            f"No text in the folder {name!r}: {EXPECTED} in it. {not_read or ''}".strip()
        )
    return CorpusFiles(sorted(paths), not_read)


def _reason_to_skip(path: Path) -> str | None:
    """Why a file is not read; None for one that is.

    Raises:
        UserError: the file is of a known format but cannot be examined.
    """
    known = file_format(path) is not None
    if path.name[0] == ".":
        return HIDDEN if known else NOT_MISSED
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if known:
            _refuse(error)
        return OTHER
    if not stat.S_ISREG(mode):
        return SPECIAL
    return None if known else OTHER


def _refuse(error: OSError) -> NoReturn:
    """Raise `UserError` about a file or folder that the user wants read."""
    path = Path(os.fsdecode(error.filename))
    if path.is_symlink():
        raise UserError(
            f"{path.name!r} is a link that leads nowhere ({error.strerror}): restore what it "
            "points to, or remove the link."
        ) from error
    raise UserError(
        f"Cannot read {path.name!r} ({error.strerror}): change its permissions, or remove it from "
        "the corpus."
    ) from error


def not_about_the_data(paths: Sequence[P]) -> tuple[list[P], list[P]]:
    """The files that are documents, and those that describe them, in order."""
    formats = {file_format(path) for path in paths if not _is_about_the_data(path)}
    about = {path for path in paths if formats and file_format(path) not in formats}
    return [path for path in paths if path not in about], [path for path in paths if path in about]


def _is_about_the_data(path: PurePath) -> bool:
    return path.name.split(".")[0].split("-")[0].lower() in ABOUT_THE_DATA


def _sentence(name: str, skipped: dict[str, list[str]]) -> str | None:
    kinds = [f"{kind} ({first_few(names, 3)})" for kind, names in skipped.items()]
    return f"Not read in {name!r}: {', '.join(kinds)}." if kinds else None
