"""Compiled code that later processes load instead of compiling it again.

A kept file is native code, and loading it runs it. So it is read only where no other user could
have put it: the folder and the file belong to this user and nobody else may write them. A damaged
file is recognized by the digest in its name. Any other file is not used, and compiling replaces it.
"""

import contextlib
import hashlib
import os
import shutil
from functools import cache
from pathlib import Path

import smollm2
from smollm2.files import cache_dir, checksum, replacing

DIGITS = 32  # of a digest, in a file's name
OTHERS_MAY_WRITE = 0o022
# What takes part in a step, by folder of this package.
SOURCES = ("inference", "model", "quantize")


def kept_code(key: str) -> Path | None:
    """The file kept under `key`, whole and safe to load; None if there is none."""
    with contextlib.suppress(OSError):
        for path in sorted(code_folder().glob(f"{key}-*.pt2")):
            if is_private(path.parent) and is_private(path) and path == place_of(key, path):
                return path
    return None


def keep_code(key: str, made: Path) -> None:
    """Keep a copy of the file `made` under `key`, and no other; nothing is kept where the cache
    cannot be written, or by others too."""
    place = place_of(key, made)
    with contextlib.suppress(OSError):
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not is_private(place.parent):
            return
        with replacing(place) as temporary:
            shutil.copyfile(made, temporary)
            temporary.chmod(0o600)
        for other in place.parent.glob(f"{key}-*.pt2"):
            if other != place:
                other.unlink()


def code_folder() -> Path:
    return cache_dir() / "compiled"


def place_of(key: str, content: Path) -> Path:
    """Where a file with the content of `content` is kept."""
    return code_folder() / f"{key}-{checksum(content)[:DIGITS]}.pt2"


def is_private(path: Path) -> bool:
    """Whether the file or folder itself, not a link to one, is this user's and only theirs to
    write. Windows keeps the cache in the user's profile."""
    if not hasattr(os, "getuid"):
        return True
    found = path.lstat()
    return found.st_uid == os.getuid() and not found.st_mode & OTHERS_MAY_WRITE


@cache
def source_digest() -> str:
    """A digest of this package's own code that decides what a step computes."""
    root, digest = Path(smollm2.__file__).parent, hashlib.sha256()
    for path in sorted(path for name in SOURCES for path in (root / name).rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    return digest.hexdigest()
