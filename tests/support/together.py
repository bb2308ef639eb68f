"""Several processes that train one run, as torchrun starts them."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
ONE_THREAD = {"OMP_NUM_THREADS": "1"}


def torchrun(n: int, arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the command line in `n` processes."""
    return subprocess.run(
        [*TORCHRUN, str(n), "-m", "smolctl", *arguments],
        cwd=folder,
        env=os.environ | ONE_THREAD,
        capture_output=True,
        text=True,
        timeout=300,
    )


@contextmanager
def torchrun_started(
    n: int, arguments: list[str], folder: Path, *, restarts: int = 0, module: str = "smolctl"
) -> Iterator[subprocess.Popen[str]]:
    """torchrun in a process of its own, which does not outlive the block."""
    with subprocess.Popen(
        [*TORCHRUN, str(n), "--max-restarts", str(restarts), "-m", module, *arguments],
        cwd=folder,
        env=os.environ | ONE_THREAD,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def process_of_rank(launcher: int, rank: int) -> int:
    """The number of the process that a torchrun has started as `rank`."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            is_it = f"\0RANK={rank}\0".encode() in b"\0" + (path / "environ").read_bytes()
        except OSError:  # it has ended, or is not ours
            continue
        if parent == launcher and is_it:
            return int(path.name)
    raise AssertionError(f"torchrun has no process of rank {rank}.")
