"""Files that a death of the process leaves whole."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any


def write_json(path: Path, value: Any) -> None:
    """Replace `path` whole by `value` as JSON."""
    replace_file(path, json.dumps(value, indent=2) + "\n")


def replace_file(path: Path, content: str | bytes) -> None:
    """Replace `path` whole: whoever reads it sees the old content or the new, never a part."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:  # a full disk, for one: what it holds of the file is of no use
        temporary.unlink(missing_ok=True)
        raise


def sync_file(path: Path) -> None:
    """Have the system write the file to the disk, if there is one."""
    if path.exists():
        with path.open("rb+") as file:
            os.fsync(file.fileno())


def checksum(path: Path) -> str:
    """The file's SHA-256 in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
