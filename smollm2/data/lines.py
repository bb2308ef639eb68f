"""The lines of a file, in bounded memory whatever the file holds."""

from collections.abc import Iterator
from typing import BinaryIO

from smollm2.errors import UserError

# JSON takes up to 25 times the memory of its text, as for `{},{},{}`.
LONGEST_LINE = 16 * 2**20  # bytes


def numbered_lines(
    file: BinaryIO, name: str, end: int | None = None
) -> Iterator[tuple[int, bytes]]:
    """Each line of `file` that is not blank, with its number from 1.

    Args:
        end: a byte of the file; lines that begin there or later are not read.

    Raises:
        UserError: a line is longer than `LONGEST_LINE`; the message says which, in file `name`.
    """
    number = 0
    while (end is None or file.tell() < end) and (line := file.readline(LONGEST_LINE + 1)):
        number += 1
        if len(line) > LONGEST_LINE:
            raise UserError(
                f"{name!r}, line {number} is longer than {LONGEST_LINE // 2**20} MiB: expected one "
                "JSON object per line. Split long documents, or keep each in a .txt file."
            )
        if not line.isspace():
            yield number, line


def skip_line(file: BinaryIO) -> None:
    """Read to the end of the line, in bounded memory."""
    while (part := file.readline(LONGEST_LINE)) and not part.endswith(b"\n"):
        pass
