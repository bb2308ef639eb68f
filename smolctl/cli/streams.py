"""Standard input, output and error of the process, whatever they are connected to.

A message that cannot be written is lost and the work continues. A result that cannot be written is
an `OutputError`. Characters that an encoding lacks are written as escapes.
"""

import codecs
import errno
import io
import os
import select
import sys
from typing import IO, TYPE_CHECKING, Any

from smollm2.errors import RunError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class OutputError(RunError):
    """Standard output cannot be written."""


class ReaderGone(OutputError):
    """The reader of standard output has gone, as that of `smolctl runs | head -1`."""


class MessageFile(io.FileIO):
    """Standard error: what cannot be written is lost."""

    def write(self, data: "ReadableBuffer") -> int:
        try:
            return write_some(self, data)
        except OSError:
            return memoryview(data).nbytes


class ResultFile(io.FileIO):
    """Standard output: the first write that fails raises `OutputError`, later ones are lost."""

    is_lost = False

    def write(self, data: "ReadableBuffer") -> int:
        if self.is_lost:  # Python tries again when it exits
            return memoryview(data).nbytes
        try:
            return write_some(self, data)
        except OSError as error:
            self.is_lost = True
            if isinstance(error, BrokenPipeError):
                raise ReaderGone("The reader of the output has gone.") from None
            reason = "it is closed" if error.errno == errno.EBADF else error.strerror
            raise OutputError(f"Standard output cannot be written: {reason}.") from None


def write_some(file: io.FileIO, data: "ReadableBuffer") -> int:
    """Write `data` or its first bytes, and wait for a reader that is slow."""
    while (written := io.FileIO.write(file, data)) is None:  # the stream does not block
        select.select([], [file], [])
    return written


def guard() -> None:
    """Replace the standard streams of the process; those that a test has replaced stay."""
    open_closed()
    if sys.stdin is None:
        sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)), "utf-8")
    elif sys.stdin is sys.__stdin__ and is_ascii(sys.stdin):  # UTF-8 includes it
        sys.stdin.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    sys.stdout = guarded(sys.stdout, sys.__stdout__, ResultFile(1, "w", closefd=False))
    sys.stderr = guarded(sys.stderr, sys.__stderr__, MessageFile(2, "w", closefd=False))


def open_closed() -> None:
    """Open the closed standard streams, so that no other file gets their numbers: the first as an
    empty file, the others as one that cannot be written."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDONLY)  # gets the lowest free number


def guarded(stream: Any, original: Any, file: io.FileIO) -> IO[str]:
    """`stream` on `file`, unless it is no longer the `original` or a Windows console."""
    if stream is None:
        return io.TextIOWrapper(io.BufferedWriter(file), "utf-8", "backslashreplace")
    buffer = stream.buffer if stream is original else None
    if type(getattr(buffer, "raw", buffer)) is not io.FileIO:
        return stream
    return io.TextIOWrapper(
        io.BufferedWriter(file),
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=stream.line_buffering or stream.write_through,
    )


def is_ascii(stream: Any) -> bool:
    """Whether the encoding of a stream has ASCII alone."""
    return codecs.lookup(stream.encoding).name == "ascii"
