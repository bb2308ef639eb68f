"""Several runs of a study at once: processes that train, each with its share of the cores.

A worker is the study command with hidden options. Its messages come through a pipe, and it stops,
saved, when its standard input ends: also when the process that started it is killed.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from types import FrameType
from typing import IO, TYPE_CHECKING

import typer

from smolctl.cli.console import say
from smolctl.cli.progress import handle_signals
from smolctl.studies.launch_spec import THREADS
from smollm2.errors import RunError

if TYPE_CHECKING:
    from smolctl.studies.at_once import AtOnce
    from smolctl.studies.runner import Session


def train_at_once(at_once: "AtOnce", words: Sequence[str], study: str) -> None:
    """Train what is missing of a study in several processes.

    Args:
        words: arguments and options of the study command.
        study: its name; of a ladder that of a rung.

    Raises:
        typer.Exit: a signal stopped them; what they trained is saved.
        RunError: one of them was killed.
    """
    number, threads = at_once
    runs = f"{number} runs at once, each" if number > 1 else "one run at a time"
    say(f"Training {runs} on {threads} core{'s' * (threads > 1)}.")
    # -P as for an installed program: no module is taken from the current folder.
    command = [sys.executable, "-P", "-m", "smolctl", "study", *words]
    command += ["--at-once", str(number), "--worker", study, "--until-stdin-ends"]
    start = partial(
        subprocess.Popen,
        command,
        env=os.environ | dict.fromkeys(THREADS, str(threads)),
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,  # a signal of the terminal reaches them through this process
    )
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(start()) for _ in range(number)]
        readers = [threading.Thread(target=forward, args=[worker.stderr]) for worker in workers]
        with stopping(workers) as received:
            for reader in readers:
                reader.start()
            for reader in readers:
                reader.join()  # until its worker ends
    if received:
        raise typer.Exit(128 + received[0])
    if any(worker.returncode < 0 for worker in workers):
        raise RunError(
            "A process that trained was killed, perhaps for lack of memory. The same command goes "
            "on; --at-once 1 takes the least memory."
        )


def forward(messages: IO[str] | None) -> None:
    """Say what a worker says, line by line."""
    assert messages is not None
    for line in messages:
        say(line.rstrip("\n"))


@contextlib.contextmanager
def stopping(workers: Sequence[subprocess.Popen[str]]) -> Iterator[list[int]]:
    """While it is entered, the first signal has the workers save and stop, and a second one kills
    them. Yields the signals that were received."""
    received: list[int] = []

    def on_signal(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for worker in workers:
            if len(received) > 1:
                worker.kill()
            elif worker.stdin is not None:
                worker.stdin.close()

    before = handle_signals(on_signal)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def work(sessions: "Iterable[Session]", study: str, at_once: int) -> None:
    """Train what is missing of the session of that name, as one of `at_once` processes."""
    for session in sessions:
        if session.study.name == study:
            session.at_once = at_once
            session.refuse_changes()
            session.train_missing()
            return


def stop_when_stdin_ends() -> None:
    """From now on, stop this process as SIGTERM does once its standard input has ended."""

    def wait() -> None:
        sys.stdin.read()
        signal.raise_signal(signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()
