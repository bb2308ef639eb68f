"""Processes to be killed."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def started(arguments: list[str], folder: Path) -> Iterator[subprocess.Popen[str]]:
    """The command line in a process of its own, which does not outlive the block."""
    with subprocess.Popen(
        [sys.executable, "-m", "smolctl", *arguments],
        cwd=folder,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for_rows(process: subprocess.Popen[str], path: Path, n_rows: int) -> None:
    """Return once a process has written as many rows, however long that takes."""
    has_ended = False
    while not (path.exists() and path.read_text().count("\n") > n_rows):
        assert not has_ended, f"The process ended before {path} had {n_rows} rows."
        has_ended = process.poll() is not None
        time.sleep(0.002)
