"""Names of temporary files, and what dead processes left under such names.

A file or folder is written beside its place as `.NAME.HOST.PID-START.tmp`. START tells the process
from a later one with the same number, so what a killed process left can be told from what a live
one is writing.
"""

import contextlib
import hashlib
import os
import re
import shutil
import socket
import time
from functools import cache
from pathlib import Path

TEMPORARY = re.compile(r"\.(?P<name>.+)\.(?P<host>[\w-]+)\.(?P<pid>\d+)-(?P<start>\d+)\.tmp", re.S)
# Older versions named the process alone, or (with the libraries they wrote with) none.
OLD_TEMPORARY = re.compile(r"\.(?P<name>.+)\.(?P<pid>\d{1,7})\.tmp", re.S)
OLD_NAMELESS = re.compile(
    r"\.(?P<name>.+)\.[a-z0-9_]{8}\.tmp|\.(step-\d+|final)\.tmp|\.tmp[A-Za-z0-9]{6}", re.S
)
NAME_BYTES = 120  # of NAME; a file system takes 255 in all
HOUR = 3600.0
WEEK = 7 * 24 * HOUR
MACHINE_ID = Path("/etc/machine-id")
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
FIRST_PID_NAMESPACE = 0xEFFFFFFC  # Linux's number of the one outside all containers


def temporary_of(path: Path) -> Path:
    """The path at which this process writes what is to become `path`, in the same folder."""
    name = os.fsdecode(os.fsencode(path.name)[:NAME_BYTES])
    pid = os.getpid()
    return path.with_name(f".{name}.{host()}.{pid}-{started(pid) or 0}.tmp")


def clear_leftovers(folder: Path, name: str | None = None) -> list[str]:
    """Delete the temporary files and folders in `folder` whose process is dead; returns the NAMEs
    of the deleted ones.

    Those of other hosts stay for a week, and for an hour those of this one before it was started
    again, as a copy of it may be running. What cannot be deleted stays as well.

    Args:
        name: of the only file whose temporaries of older versions are deleted too; None if the
            whole folder is this package's own.
    """
    cleared = []
    with contextlib.suppress(OSError):  # no such folder, or not ours to read
        with os.scandir(folder) as entries:
            hidden = [Path(entry.path) for entry in entries if entry.name.startswith(".")]
        for path in hidden:
            found = leftover(path)
            if found and (name in (None, found["name"]) or found.re is TEMPORARY):
                remove(path)
                cleared.append(found["name"] or path.name)
    return cleared


def leftover(path: Path) -> "re.Match[str] | None":
    """The parts of the name of a temporary whose process is dead; None for anything else."""
    if found := TEMPORARY.fullmatch(path.name):
        if found["host"] != host():
            was_here = re.fullmatch(host().replace(boot(), "[0-9a-f]{8}"), found["host"])
            return found if is_unchanged_for(HOUR if was_here else WEEK, path) else None
        return None if is_running(int(found["pid"]), int(found["start"])) else found
    if found := OLD_TEMPORARY.fullmatch(path.name):
        return None if is_running(int(found["pid"])) else found
    found = OLD_NAMELESS.fullmatch(path.name)
    if found and found["name"] is None and path.is_dir():
        return None  # libraries made files only: `.tmpfolder` is somebody's
    return found if found and is_unchanged_for(HOUR, path) else None


def is_running(pid: int, start: int = 0) -> bool:
    """Whether the process lives that had the number `pid` and began at `start` (0: unknown)."""
    if os.name == "nt":
        return True  # `os.kill` ends the process there, even with signal 0
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # another user's
    now = started(pid)
    return now is None or (now > 0 and start in (0, now))


def started(pid: int) -> int | None:
    """When a process began, in the kernel's ticks since the system did; 0 if it has ended and its
    parent has not noticed; None if that cannot be known."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    state, *fields = stat.rpartition(")")[2].split()
    return 0 if state in ("Z", "X") else int(fields[18])


@cache
def host() -> str:
    """The name of the machine, with hashes of its id and its start, as clones share a name or even
    an id, and with the number of the container: process numbers are its own."""
    parts = [re.sub(r"[^A-Za-z0-9]+", "-", socket.gethostname())[:40] or "host"]
    with contextlib.suppress(OSError):  # there is an id on Linux only
        parts.append(short_hash(MACHINE_ID))
    parts.append(boot())
    with contextlib.suppress(OSError):
        namespace = os.stat("/proc/self/ns/pid").st_ino
        parts += [] if namespace == FIRST_PID_NAMESPACE else [str(namespace)]
    return "-".join(parts)


def boot() -> str:
    """A hash of the id that the system has taken at its start; zeros where it takes none."""
    try:
        return short_hash(BOOT_ID)
    except OSError:
        return "0" * 8


def short_hash(path: Path) -> str:
    """The beginning of a hash of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:8]


def is_unchanged_for(seconds: float, path: Path) -> bool:
    """Whether nothing was written to a file, or to any in a folder, for so long."""
    paths = [path, *path.rglob("*")] if path.is_dir() and not path.is_symlink() else [path]
    try:
        return max(each.lstat().st_mtime for each in paths) < time.time() - seconds
    except OSError:  # it has just been moved
        return False


def remove(path: Path) -> None:
    """Delete a file or a folder, as far as that is possible."""
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()
