"""smolctl in a forked child, which may be killed and whose resources are bounded.

Starting Python and importing torch takes seconds, so one process imports everything and forks a
child per command. The child runs `smolctl.cli.app.main`, with the streams of a real process.
"""

import contextlib
import importlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

KILLER = Path(__file__).with_name("killer.c")
CPU_SECONDS = 10  # of a command that reads bad input
WALL_SECONDS = 300.0  # of any command, on a machine however busy
ADDRESS_SPACE = 8 * 2**30  # bytes above the parent's, so that a bomb does not take the machine down
# Imported before the first child, which would import them a second time.
SLOW_IMPORTS = ("smollm2.training.loop", "torch._dynamo", "pandas", "matplotlib.pyplot")


@dataclass(frozen=True)
class Ended:
    """A command that has ended: `code` is negative for the signal that ended it, as in subprocess;
    `cpu` is in seconds, `peak` in bytes above the parent's own."""

    arguments: tuple[str, ...]
    code: int
    out: str
    err: str
    cpu: float
    peak: int

    @property
    def was_killed(self) -> bool:
        return self.code == -signal.SIGKILL


@dataclass(frozen=True)
class Kill:
    """When a command is killed: before its n-th change of a file, or at a CPU time (seconds)."""

    event: int | None = None
    cpu: float | None = None

    def __str__(self) -> str:
        return f"at {self.cpu:.3f} s of CPU time" if self.cpu else f"at file change {self.event}"


def build_killer(folder: Path) -> Path | None:
    """The library that kills at system calls; None without a C compiler for Linux."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None or sys.platform != "linux":
        return None
    library = folder / "killer.so"
    command = [compiler, "-shared", "-fPIC", "-O1", "-w", "-o", str(library), str(KILLER), "-ldl"]
    done = subprocess.run(command, capture_output=True)
    return library if done.returncode == 0 else None


def kills_at_events() -> bool:
    """Whether this process has that library loaded, and so have its children."""
    return "killer.so" in os.environ.get("LD_PRELOAD", "")


def command(
    arguments: list[str], work: Path, *, kill: Kill | None = None, cpu_seconds: int | None = None
) -> Ended:
    """Run smolctl in the folder `work`; its cache is there too. What it prints and the log of its
    file changes go to the folder above."""
    return finish(start(arguments, work, kill=kill, cpu_seconds=cpu_seconds))


@dataclass(frozen=True)
class Started:
    """A command that runs."""

    pid: int
    arguments: list[str]
    streams: tuple[Path, Path]
    kill: Kill | None


def start(
    arguments: list[str],
    work: Path,
    *,
    kill: Kill | None = None,
    cpu_seconds: int | None = None,
    name: str = "",
) -> Started:
    """Begin what `command` does; `name` tells its files from those of another at the same time."""
    streams = work.parent / f"stdout{name}", work.parent / f"stderr{name}"
    log = work.parent / f"changes{name}"
    for path in (*streams, log):
        path.write_bytes(b"")  # the child may be killed before it opens them
    pid = os.fork()
    if pid == 0:
        code = 70  # of a failure of this function itself
        try:
            redirect(*streams)
            os.chdir(work)
            os.environ |= {
                "SMOLCTL_CACHE": str(work / "cache"),
                "SOAK_PATH": f"{work}/",
                "SOAK_LOG": str(log),
            }
            if kill and kill.event:
                os.environ["SOAK_AT"] = str(kill.event)
            limit(cpu_seconds)
            code = main(arguments)
        finally:
            os._exit(code)
    return Started(pid, arguments, streams, kill)


def redirect(out: Path, err: Path) -> None:
    """Point the standard streams to files."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    opened = os.open(os.devnull, os.O_RDONLY), os.open(out, flags), os.open(err, flags)
    for number, descriptor in enumerate(opened):
        os.dup2(descriptor, number)


def limit(cpu_seconds: int | None) -> None:
    """Bound memory and, if asked, CPU time."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ADDRESS_SPACE,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if cpu_seconds:
        resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds + 1))


def main(arguments: list[str]) -> int:
    """The exit code of smolctl in this process, as a process of its own would end."""
    from smolctl.cli.app import main

    sys.argv = ["smolctl", *arguments]
    try:
        main()
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 0
    except BaseException:
        import traceback

        traceback.print_exc()
        return 1
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
    return 0


def finish(started: Started) -> Ended:
    """Wait for a command; one that takes too long is ended by SIGALRM's number."""
    deadline = time.monotonic() + WALL_SECONDS
    kill, too_long = started.kill, False
    cpu_clock = (~started.pid << 3) | 2  # of another process, see clock_getcpuclockid(3)
    pause = 0.001 if kill and kill.cpu else 0.01
    while True:
        pid, status, usage = os.wait4(started.pid, os.WNOHANG)
        if pid:
            break
        if kill and kill.cpu and time.clock_gettime(cpu_clock) >= kill.cpu:
            os.kill(started.pid, signal.SIGKILL)
        elif time.monotonic() > deadline and not too_long:
            too_long = True
            os.kill(started.pid, signal.SIGKILL)
        time.sleep(pause)
    code = -signal.SIGALRM if too_long else os.waitstatus_to_exitcode(status)
    out, err = (path.read_text(errors="replace") for path in started.streams)
    pages, shared = map(int, Path("/proc/self/statm").read_text().split()[1:3])
    own = (pages - shared) * resource.getpagesize()  # which a child begins with
    peak = max(0, usage.ru_maxrss * 1024 - own)
    cpu = usage.ru_utime + usage.ru_stime
    return Ended(tuple(started.arguments), code, out, err, cpu, peak)


def changes(work: Path) -> int:
    """How many file changes the last command in `work` made."""
    return (work.parent / "changes").read_bytes().count(b"\n")


def import_as(commands: list[list[str]], work: Path) -> None:
    """Import what the commands import, by running them in a child first: this process must run
    none itself, since threads do not survive a fork."""
    for name in SLOW_IMPORTS:
        importlib.import_module(name)
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            redirect(work.parent / "stdout", work.parent / "stderr")
            os.chdir(work)
            os.environ["SMOLCTL_CACHE"] = str(work / "cache")
            for arguments in commands:
                if main(arguments):
                    os._exit(1)
            os.write(write, "\n".join(name for name in list(sys.modules) if name).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        names = pipe.read().split()
    os.waitpid(pid, 0)
    if not names:
        raise RuntimeError(f"a first command failed: {(work.parent / 'stderr').read_text()}")
    for name in names:
        with contextlib.suppress(Exception):  # made at run time by a library
            importlib.import_module(name)
