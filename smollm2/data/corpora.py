"""The registry of corpora, and the documents of any of them.

A *source* is one string that names a corpus: `builtin`, a file, a folder, `smollm-corpus`,
`hub:ORG/NAME[/CONFIG]`, or a source of another registered kind.

Every module of `smollm2.data.kinds` declares a `KIND`; a new one needs no other change. `register`
adds one from elsewhere.
"""

import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from smollm2.data.corpus_kind import CorpusKind
from smollm2.data.kinds.file_corpus import KIND as FILES
from smollm2.discovery import declared
from smollm2.errors import UserError, did_you_mean
from smollm2.files import base_name

ALIASES = {"smollm-corpus": "hub:HuggingFaceTB/smollm-corpus/cosmopedia-v2"}
# By prefix. A source without a registered prefix is a path.
CORPORA: dict[str, CorpusKind] = {}


def register(kind: CorpusKind) -> None:
    """Make a kind of corpus known by its prefix, which must be new."""
    if kind.prefix in CORPORA:
        raise ValueError(f"There is already a kind of corpus {kind.prefix!r}.")
    CORPORA[kind.prefix] = kind


def corpus_kind(source: str) -> CorpusKind:
    """The kind of a source; the source need not exist."""
    source = ALIASES.get(source, source)
    return next((kind for kind in CORPORA.values() if kind.names(source)), FILES)


def documents(source: str) -> Iterator[str]:
    """The documents of `source` in a fixed order, without those that are only whitespace.

    Only one document is in memory at a time, and another call starts again.

    Raises:
        UserError: at once if `source` does not exist or cannot be read at all; from the
            iterator, naming file and line, at the first broken record, and at the end of a
            source that held no text.
    """
    return _not_empty(_existing_kind(source).read(ALIASES.get(source, source)), source_name(source))


def document_slices(source: str, n: int) -> list[Callable[[], Iterator[str]]]:
    """Functions that read `n` slices of `source`, each a function of its slice alone; together
    they have the documents of `documents`. A slice may have none.

    Raises:
        UserError: there is no such source, or it cannot be cut into so many slices.
    """
    kind = _existing_kind(source)
    if kind.slices is None:
        raise UserError(
            f"{source_name(source)!r} can only be read from its start, so `shards` cannot cut it: "
            "name a file, a folder or an address such as hf://datasets/ORG/NAME.",
            field="shards",
        )
    return [partial(_with_text, read) for read in kind.slices(ALIASES.get(source, source), n)]


def not_read(source: str) -> str | None:
    """A sentence of bounded length about what of `source` is not read, or None if all is.

    Raises:
        UserError: there is no such source.
    """
    return _existing_kind(source).not_read(ALIASES.get(source, source))


# Protocols whose addresses have an @ that is no user's: ORG:REPO@REF, CONTAINER@ACCOUNT.
PLACES = {"github", "git", "abfs", "abfss", "wasb", "wasbs"}


def source_name(source: str) -> str:
    """What a manifest calls `source`: the base name of a file or folder, else the full name."""
    if is_path(source):
        return base_name(Path(source).resolve())
    return without_secrets(ALIASES.get(source, source))


def without_secrets(source: str) -> str:
    """`source` as a request keeps it: of a path and of an address on this machine only the base
    name, and no user name and password of an address."""
    if is_path(source) or source.startswith(("file://", "local://")):
        return base_name(source)
    plain = source
    if source.partition("://")[0] not in PLACES:
        plain = re.sub(r"://[^/]*@", "://", source)
    return plain.partition("?")[0] if plain.startswith(("http://", "https://")) else plain


def source_identity(source: str) -> str:
    """A string that changes if the content of `source` may have changed.

    Raises:
        UserError: there is no such source.
        OSError: it cannot be examined.
    """
    return _existing_kind(source).identity(ALIASES.get(source, source))


def is_path(source: str) -> bool:
    """Whether `source` is a file or folder, which need not exist."""
    return corpus_kind(source) is FILES


def _existing_kind(source: str) -> CorpusKind:
    """The kind of a source; raises `UserError` for a path that leads nowhere."""
    kind, path = corpus_kind(source), Path(source)
    if kind is FILES and not (source and path.exists()):  # an empty path is the current folder
        near = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        known = ", ".join(each.spelling for each in CORPORA.values())
        raise UserError(
            f"There is no file or folder {source!r}.{did_you_mean(path.name, near)} "
            f"A corpus is one of {known}; builtin is on every machine."
        )
    return kind


def _with_text(read: Callable[[], Iterator[str]]) -> Iterator[str]:
    return (text for text in read() if text and not text.isspace())


def _not_empty(texts: Iterator[str], name: str) -> Iterator[str]:
    empty = True
    for text in texts:
        if text and not text.isspace():
            empty = False
            yield text
    if empty:
        raise UserError(f"There is no text in {name!r}: expected at least one document.")


for _kind in declared("smollm2.data.kinds", "KIND"):
    register(_kind)
