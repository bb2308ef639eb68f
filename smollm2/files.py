"""Files that a death of the process leaves whole."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write_json(path: Path, value: Any) -> None:
    """Replace `path` whole by `value` as JSON."""
    replace_file(path, json.dumps(value, indent=2) + "\n")


def replace_file(path: Path, content: str | bytes) -> None:
    """Replace `path` whole: whoever reads it sees the old content or the new, never a part."""
    # Named after the process: two that share a study may write the same file.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:  # a full disk, for one: what it holds of the file is of no use
        temporary.unlink(missing_ok=True)
        raise


def write_folder(path: Path, write: Callable[[Path], None]) -> None:
    """Have `write` fill a folder beside `path`, which then takes its place: there is all of it or
    nothing.

    Args:
        path: must not exist, or be an empty folder; the one it lies in must exist.
    """
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        write(temporary)
        temporary.chmod(0o755)  # mkdtemp's own is for one user only
        if path.is_dir():
            path.rmdir()  # an empty folder, which Windows would not rename over
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sync_file(path: Path) -> None:
    """Have the system write the file to the disk, if there is one."""
    if path.exists():
        with path.open("rb+") as file:
            os.fsync(file.fileno())


def checksum(path: Path) -> str:
    """The file's SHA-256 in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
