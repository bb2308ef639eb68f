"""The lock of a study's folder: what one process at a time may do."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from smolctl.talk import say
from smollm2.errors import UserError
from smollm2.files import make_folder

LEDGER_SECONDS = 1.0  # to wait for a process that only writes the ledger


class StudyLock:
    """The lock of the folder of a study."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = FileLock(folder / "study.lock")

    @contextlib.contextmanager
    def alone(self, why: str | None = None) -> Iterator[None]:
        """Keep other processes out of what follows; wait for one that is inside.

        Raises:
            UserError: one is inside; `why` says why this one does not wait.
        """
        make_folder(self.folder)
        try:
            self.file.acquire(timeout=0 if why else LEDGER_SECONDS)
        except Timeout:
            if why is not None:
                raise UserError(
                    f"Another process is running study {self.folder.name!r}, and {why}."
                ) from None
            say("Waiting for another process, which evaluates the runs ...")
            self.file.acquire()
        try:
            yield
        finally:
            self.file.release()
