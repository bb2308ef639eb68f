"""The built-in corpus: the sources of Python's standard library, which are on every machine."""

import json
import os
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from smollm2.data.corpus_kind import CorpusKind
from smollm2.errors import UserError

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


def stdlib_documents(source: str) -> Iterator[str]:
    """The text of each file."""
    return (path.read_bytes().decode() for path in stdlib_files())


def stdlib_identity(source: str) -> str:
    """The Python version, and the names and sizes of the files."""
    sizes = [(path.name, path.stat().st_size) for path in stdlib_files()]
    return json.dumps([source, sys.version, sizes])


def stdlib_files() -> list[Path]:
    """This Python's own library sources that are UTF-8, sorted, without tests (about 12 MB)."""
    files = [path for path in _sources(sysconfig.get_path("stdlib")) if _is_utf8(path)]
    if not files:
        raise UserError(
            "This Python comes without the sources of its standard library, so there is no "
            "built-in corpus: name a text file or a folder with `data`."
        )
    return files


def _sources(root: str) -> list[Path]:
    found = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in STDLIB_SKIPPED and name[0] != "."]
        wanted = [name for name in names if name.endswith(".py") and name[0] != "."]
        found += [Path(folder, name) for name in wanted]
    return sorted(found)


def _is_utf8(path: Path) -> bool:
    try:
        path.read_bytes().decode()
    except UnicodeDecodeError:
        return False
    return True


KIND = CorpusKind(
    prefix="builtin",
    spelling="builtin",
    read=stdlib_documents,
    identity=stdlib_identity,
    follows_python=True,
)
