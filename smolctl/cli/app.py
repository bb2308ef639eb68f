"""The entry point of `smolctl`: signals, errors and exit codes.

It imports only what Python has loaded already, so that Ctrl-C is handled from the start. Hence
`_signal`, the built-in part of `signal`: the rest takes 15 ms to load.
"""

import _signal as signal  # type: ignore[import-not-found]
import os
import sys

TYPE_CHECKING = False  # as in `typing`, which takes time to load
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeGuard

received: list[int] = []  # signals that are stopping this process
# How libraries report that memory is short, each in its own kind of error.
NO_MEMORY = (
    *("not enough memory", "allocate memory", "failed to map segment"),
    "returned NULL without setting an exception",  # an import
)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line, by default that of this process, and exit.

    Exit codes: 0 success, 1 failure, 2 invalid input, 128 + N stopped by signal N.
    """
    is_process = arguments is None
    words = sys.argv[1:] if arguments is None else arguments
    received.clear()
    # SIGTERM ends like Ctrl-C, through every `finally`; training installs a gentler handler.
    signal.signal(signal.SIGTERM, stop)
    if is_process:
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, stop)
        sys.unraisablehook = on_unraisable
    debug = "--debug" in words
    code = exit_code(lambda: run(words), debug) or exit_code(lambda: sys.stdout.flush(), debug)
    if is_process:  # nothing is left to do
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.exit(code)


def run(arguments: list[str]) -> None:
    """Run a command in a process that is fit for it."""
    from smolctl.cli import startup

    startup.prepare_process()
    from smolctl.cli.root import app

    app(arguments)


def stop(number: int, frame: object) -> None:
    """Handle a signal: leave through every `finally`."""
    received.append(number)
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    sys.exit(128 + number)


def on_unraisable(unraisable: "sys.UnraisableHookArgs") -> None:
    """Handle an exception that Python would print and ignore: a signal still stops the process."""
    if received:
        os._exit(128 + received[0])
    sys.__unraisablehook__(unraisable)


def exit_code(work: "Callable[[], None]", debug: bool) -> int:
    """The exit code of `work`, whose errors are reported; with `debug` they are raised."""
    try:
        work()
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException as error:
        if debug:
            raise
        return report_error(error)
    return 0


def report_error(error: BaseException) -> int:
    """Print an error as a sentence; returns the exit code."""
    from smolctl.cli.flags import error_message, with_flags
    from smolctl.cli.streams import ReaderGone
    from smollm2.errors import RunError, UserError

    if isinstance(error, ReaderGone):
        return 1
    if isinstance(error, UserError | RunError):
        write_message(f"Error: {error_message(error)}", remedy(error))
        for note in getattr(error, "__notes__", ()):
            write_message(with_flags(note))
        return 2 if isinstance(error, UserError) else 1
    if received:  # a library may turn the interruption into an error of its own
        return 128 + received[0]
    if is_too_long(error):
        name = os.fsdecode(error.filename or "")
        write_message(
            f"Error: {name[:40]!r}... is not the name of a file or folder ({error.strerror}): "
            "expected a shorter one."
        )
        return 2
    if is_of_disk(error):
        where = "" if error.filename is None else f" {os.fsdecode(error.filename)}"
        write_message(f"Error: Cannot write{where}: {error.strerror}.")
        return 1
    if isinstance(error, MemoryError) or any(words in str(error) for words in NO_MEMORY):
        write_message(
            "Error: There is not enough memory for this command: close other programs, or use a "
            "smaller model, a smaller --micro-batch-size or --batch-size, or shorter texts."
        )
        return 1
    write_message(
        f"Error: smolctl failed unexpectedly ({type(error).__name__}: {error}). ",
        "Run again with `smolctl --debug ...` and report what it prints.",
    )
    return 1


def is_too_long(error: BaseException) -> "TypeGuard[OSError]":
    """Whether a path has more characters than the system allows."""
    import errno

    return isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG


def is_of_disk(error: BaseException) -> "TypeGuard[OSError]":
    """Whether a disk is full, read-only or broken."""
    import errno

    from smollm2.files import FULL

    numbers = {*FULL, errno.EROFS, errno.EIO} - {None}
    return isinstance(error, OSError) and error.errno in numbers


def write_message(text: str, ending: str = "") -> None:
    """Print a message on stderr, without rich, which takes time and memory to load."""
    from smolctl.printable import printable, shortened

    sys.stderr.write(f"{shortened(printable(text))}{printable(ending)}\n")
    sys.stderr.flush()


def remedy(error: BaseException) -> str:
    """A space and the command to type next, if the error itself cannot know it."""
    from smollm2.runs.packed import PackedStudy

    if isinstance(error, PackedStudy):
        from smolctl.studies.targets import unpack_command

        return f" Unpack it first: {unpack_command(error.study)}"
    return ""
