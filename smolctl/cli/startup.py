"""What a process needs before its command: streams, a terminal's size, a home, a folder."""

import gc
import os
import stat
import sys

from smolctl.cli import streams
from smollm2.errors import UserError

# Compiled matrix products that torch and oneDNN cache per shape, a thousand by default. Experts see
# a new number of rows at every step: nano `moe-160m` took 1.4 GB, not 0.6 GB, and was no faster.
KEPT_PRODUCTS = {"LRU_CACHE_CAPACITY": "64", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128"}

# glibc's M_MMAP_MAX and M_TRIM_THRESHOLD (bytes): a CPU's training step takes 10 % less time.
MALLOC_OPTIONS = {-4: 0, -1: 2**31 - 1}

NEW_OBJECTS = 100_000  # between searches for garbage; cycles of so many take some 20 MB

# Sizes of a terminal that the environment may state, and the least and greatest that are taken.
SIZES = {"COLUMNS": (40, 500), "TERMINAL_WIDTH": (40, 500), "LINES": (10, 500)}
USER_NAMES = ("LOGNAME", "USER", "LNAME", "USERNAME")  # where `getpass.getuser` looks


def prepare_process() -> None:
    """Prepare the process for a command.

    Raises:
        UserError: the current folder is gone, or there is no place for a cache.
    """
    streams.guard()
    for name, capacity in KEPT_PRODUCTS.items():  # read when torch is imported
        os.environ.setdefault(name, capacity)
    limit_terminal_size()
    require_current_folder()
    provide_home()


def limit_terminal_size() -> None:
    """Correct the sizes of the terminal in the environment; drop what is not a size."""
    for name, (least, greatest) in SIZES.items():
        text = os.environ.get(name, "")
        if text.isascii() and text.isdigit() and (size := int(text[:9])) > 0:
            os.environ[name] = str(min(max(size, least), greatest))
        else:
            os.environ.pop(name, None)


def require_current_folder() -> None:
    """Raise `UserError` if the current folder has been deleted."""
    try:
        os.getcwd()
    except OSError:
        raise UserError("The current folder no longer exists; change to another.") from None


def provide_home() -> None:
    """Set a temporary home and a user name if the system knows none: torch, matplotlib and the
    Hugging Face libraries need them for their caches."""
    if not hasattr(os, "getuid"):  # Windows always knows them
        return
    if not os.environ.get("HOME"):
        os.environ.pop("HOME", None)
        if os.path.expanduser("~") == "~":
            os.environ["HOME"] = private_folder(f"smolctl-{os.getuid()}")
    if not any(os.environ.get(name) for name in USER_NAMES) and not has_user_name():
        os.environ["USER"] = f"user{os.getuid()}"


def has_user_name() -> bool:
    """Whether the system's list of users has the user of this process."""
    import pwd

    try:
        pwd.getpwuid(os.getuid())
    except KeyError:
        return False
    return True


def private_folder(name: str) -> str:
    """A folder of that name for temporary files, which only this user can write.

    Raises:
        UserError: no folder for temporary files can be written.
    """
    import tempfile

    try:
        path = os.path.join(tempfile.gettempdir(), name)
        os.makedirs(path, mode=0o700, exist_ok=True)
        found = os.lstat(path)
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid():
            return path
        return tempfile.mkdtemp(prefix=f"{name}-")  # another user has taken the name
    except OSError:
        raise UserError(
            "There is no home and no folder for temporary files; set HOME to a folder that can be "
            "written."
        ) from None


def collect_garbage_rarely() -> None:
    """For a command that makes millions of objects and ends: with Python's default it takes a tenth
    longer to read and draw 500 runs. It holds for the whole process."""
    gc.set_threshold(NEW_OBJECTS)


def keep_freed_memory() -> None:
    """Have the C allocator keep freed memory, on Linux.

    By default it returns each large tensor to the system, which then clears the pages of the next
    one. `malloc_trim`, before a run's peak is measured, still returns free memory.
    """
    import ctypes

    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        for option, value in MALLOC_OPTIONS.items():
            mallopt(option, value)
