"""Files that stay whole if the process dies, the disk is full or the power fails."""

import contextlib
import errno
import gzip
import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smollm2.leftovers import clear_leftovers, remove, temporary_of

if TYPE_CHECKING:
    from torch import Tensor

GZIP_ON_UNIX = b"\x03"  # the header byte in which Python 3.13 differs from 3.11
# Of an OSError that means there is no room; NumPy's for a short write has no number.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, None)


@contextlib.contextmanager
def replacing(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield a path at which to make a file or a folder, which then takes the place of `path`.

    A reader sees the old content or the new, never a part. A file keeps the permissions of the one
    that it replaces. If the block fails, `path` is as before and nothing else stays.

    Args:
        path: its folder must exist. A folder only replaces an empty one.
        durable: whether the power may fail afterwards without a loss.

    Raises:
        OSError: it names `path`.
    """
    clear_leftovers(path.parent, path.name)
    temporary = temporary_of(path)
    remove(temporary)  # of a dead process with our number, where its start cannot be known
    with errors_naming(path, temporary):
        try:
            yield temporary
            if durable:
                sync(temporary)
            if temporary.is_dir() and path.is_dir():
                path.rmdir()  # which Windows would not rename over
            elif path.is_file() and not path.is_symlink():
                temporary.chmod(stat.S_IMODE(path.stat().st_mode))
            temporary.replace(path)
        except BaseException:
            remove(temporary)
            raise
        if durable:
            sync_folder(path.parent)


@contextlib.contextmanager
def errors_naming(path: Path, temporary: Path) -> Iterator[None]:
    """A context manager that has errors name `path`, not its temporary file or nothing."""
    try:
        yield
    except OSError as error:
        if error.errno is None and "written" in str(error):  # NumPy: "64 requested and 0 written"
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        name = error.filename
        if name is None or str(name).startswith(str(temporary)):
            error.filename, error.filename2 = str(path), None
        raise


def replace_file(path: Path, content: str | bytes) -> None:
    """Replace the file at `path`; see `replacing`."""
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, value: Any) -> None:
    """Replace the file at `path` by `value` as JSON."""
    replace_file(path, json.dumps(value, indent=2) + "\n")


def write_tensors(
    path: Path, tensors: "Mapping[str, Tensor]", metadata: dict[str, str] | None = None
) -> None:
    """Replace the file at `path` by tensors as safetensors; see `replacing`."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with replacing(path) as temporary:
        # safetensors has a temporary file of its own, which no one could tell whose it is: it goes
        # to a folder of ours.
        folder = temporary_of(path.with_name(f"{path.name}.parts"))
        made = folder / path.name
        try:
            folder.mkdir()
            made.touch()
            mode = made.stat().st_mode  # safetensors makes it readable by one user only
            save_file(dict(tensors), made, metadata)
            made.chmod(stat.S_IMODE(mode))
            made.replace(temporary)
        except SafetensorError as error:
            code = re.search(r"os error (\d+)", str(error))
            number = int(code[1]) if code else errno.EIO
            reason = os.strerror(number) if code else str(error)
            raise OSError(number, reason, str(path)) from error
        finally:
            remove(folder)


def append(path: Path, text: str) -> None:
    """Add `text` to the end of a file, which is made if need be; if that fails, it is as before."""
    with path.open("ab", buffering=0) as file, errors_naming(path, path):
        before, left = file.tell(), memoryview(text.encode())
        try:
            while left:
                left = left[file.write(left) :]
        except BaseException:
            with contextlib.suppress(OSError):
                file.truncate(before)
            raise


def make_folder(path: Path) -> None:
    """Make a folder and those it lies in, where they are missing."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        sync_folder(folder.parent)


def discard_folder(path: Path) -> None:
    """Delete a folder; it is renamed first, so no part of it ever remains in its place."""
    doomed = temporary_of(path)
    path.rename(doomed)
    shutil.rmtree(doomed)


def sync(path: Path) -> None:
    """Flush a file, or everything in a folder, to disk; nothing if there is none."""
    if path.is_dir():
        for parent, _, names in os.walk(path):
            for name in names:
                sync(Path(parent, name))
            sync_folder(Path(parent))
    elif path.is_file():
        with path.open("rb+") as file:
            os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Flush the names in a folder to disk, where the system can do that."""
    if os.name == "nt":
        return
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:  # a folder to write to, but not to list
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


def gzipped(content: bytes) -> bytes:
    """`content` compressed, without name or time, and with the same header on every Python."""
    compressed = gzip.compress(content, mtime=0)
    return compressed[:9] + GZIP_ON_UNIX + compressed[10:]


def cache_dir() -> Path:
    """`$SMOLCTL_CACHE`, else `$XDG_CACHE_HOME/smolctl`, else `~/.cache/smolctl`."""
    if own := os.environ.get("SMOLCTL_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "smolctl"


def checksum(path: Path) -> str:
    """The file's SHA-256 in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def base_name(path: str | Path) -> str:
    """The last part of a path as text: bytes that are not UTF-8 are escaped, as `caf\\xe9.txt`."""
    return os.fsencode(Path(path).name).decode(errors="backslashreplace")


def absolute(path: Path) -> Path:
    """`path` as an absolute path without `.` and `..`. Links are kept: a run is named after its own
    path."""
    return Path(os.path.abspath(path))


def folder_bytes(folder: Path) -> int:
    """Bytes of all files in a folder, recursively; links are not followed."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # a running run drops checkpoints
                total += os.lstat(os.path.join(parent, name)).st_size
    return total
