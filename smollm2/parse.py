"""JSON and TOML from outside: whatever the file holds, a value of bounded size or one sentence.

A file is refused if it is not a regular file (reading a pipe could wait forever), is too large, is
not UTF-8 (a byte order mark is fine), is nested too deeply, or holds numbers or texts that Python
could not print again.
"""

import json
import math
import os
import re
import stat
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from smollm2.errors import UserError

T = TypeVar("T")

MAX_JSON = 16 * 2**20  # bytes; the index of the weights of a model of 671 B parameters has 9 MB
MAX_TOML = 2**18  # bytes; tomllib reads about a million in a second
MAX_DEPTH = 64  # tables and lists within each other
MAX_DIGITS = 40  # of a whole number
MAX_REASON = 200  # characters
# A dotted key of 200 parts, or as many one-word sentences: tomllib takes time quadratic in them.
DOTTED = re.compile(r"""(?<![\w-])(?:(?:[\w-]++|"[^"\n]*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+){200}""")


class Unreadable(UserError):
    """A file cannot be read, or its content cannot be parsed.

    Args:
        sentence: names the file and what is wrong.
        reason: what is wrong, without the file and without a period, such as `it is a folder`.
    """

    def __init__(self, sentence: str, reason: str) -> None:
        super().__init__(sentence)
        self.reason = reason


class MissingFile(Unreadable):
    """The file does not exist."""


def read_json(path: Path, name: str | None = None, *, nonfinite: bool = False) -> dict[str, Any]:
    """The table (object) in a JSON file.

    Args:
        name: the file's name in messages; by default its path.
        nonfinite: whether NaN and infinite numbers are allowed.

    Raises:
        MissingFile, Unreadable: see the module; or it holds something other than a table, or a
            field twice.
    """
    name = name or str(path)
    try:
        return json_table(read_file(path, MAX_JSON), nonfinite=nonfinite)
    except FileNotFoundError as error:
        raise MissingFile(f"There is no file {name!r}.", "it does not exist") from error
    except (OSError, ValueError) as error:
        raise unreadable(name, "JSON", error) from error


def read_toml(path: Path, what: str, make: Callable[[dict[str, Any]], T]) -> T:
    """Apply `make` to the content of a TOML file; its errors begin with the file's path.

    Args:
        what: the kind of file in messages, such as `study`.

    Raises:
        MissingFile, Unreadable: see the module.
        UserError: `make` raises it.
    """
    try:
        table = parse_toml(read_file(path, MAX_TOML))
    except FileNotFoundError as error:
        raise MissingFile(f"There is no {what} file {str(path)!r}.", "it does not exist") from error
    except (OSError, ValueError) as error:
        raise unreadable(str(path), "TOML", error) from error
    try:
        return make(table)
    except UserError as error:
        raise UserError(f"{path}: {error}", field=error.field) from None


def with_underscores(table: Mapping[str, Any]) -> dict[str, Any]:
    """A table whose keys are settings, with `_` for each `-` in them: files may have either.

    Raises:
        UserError: it has a key in both spellings.
    """
    found: dict[str, Any] = {}
    for key, value in table.items():
        if (name := key.replace("-", "_")) in found:
            raise UserError(f"{key} appears twice, with - and with _.")
        found[name] = value
    return found


def json_table(content: bytes, *, nonfinite: bool = False) -> dict[str, Any]:
    """The table (object) of a JSON text; raises `ValueError` as `parse_json`, or if it holds
    something else."""
    value = parse_json(content, nonfinite=nonfinite)
    if not isinstance(value, dict):
        raise ValueError("it is not a table of fields")
    return value


def parse_json(content: bytes | str, *, nonfinite: bool = False) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is not valid; the message is a `reason` of `Unreadable`.
    """

    def number(text: str) -> float:
        value = float(text)
        if not (nonfinite or math.isfinite(value)):
            raise ValueError("it has a number that is not finite")
        return value

    def whole(text: str) -> int:
        if len(text) > MAX_DIGITS + 1:  # and a sign
            raise ValueError(f"it has a number of more than {MAX_DIGITS} digits")
        return int(text)

    try:
        value = json.loads(
            decoded(content),
            parse_float=number,
            parse_constant=number,
            parse_int=whole,
            object_pairs_hook=without_duplicates,
        )
    except RecursionError:
        raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels") from None
    require_bounded(value)
    return value


def parse_toml(content: bytes | str) -> dict[str, Any]:
    """The table of a TOML text.

    Raises:
        ValueError: it is not valid; the message is a `reason` of `Unreadable`.
    """
    text = decoded(content)
    try:
        if DOTTED.search(text):
            raise RecursionError
        table = tomllib.loads(text)
    except RecursionError:
        raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels") from None
    except ValueError as error:
        if "integer string conversion" in str(error):  # Python's own limit, of 4300
            raise ValueError(f"it has a number of more than {MAX_DIGITS} digits") from None
        raise
    require_bounded(table)
    return table


def read_file(path: Path, max_bytes: int) -> bytes:
    """The content of a regular file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not a regular file or has more than `max_bytes`; the message is a `reason`
            of `Unreadable`.
    """
    # Without O_NONBLOCK, opening a named pipe waits for someone who writes to it.
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except FileNotFoundError:
        if os.path.islink(path):  # which is damage, not the absence of a file
            raise ValueError("it is a link to a file that does not exist") from None
        raise
    except ValueError:  # a NUL in the path
        raise ValueError("its name is not a valid file name") from None
    with open(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise ValueError("it is not a regular file")
        # `read(n)` would allocate n bytes, however short the file is.
        if found.st_size > max_bytes or len(content := file.read()) > max_bytes:
            raise ValueError(f"it has more than {max_bytes:,} bytes")
    return content


def decoded(content: bytes | str) -> str:
    """The text of UTF-8 bytes, without a byte order mark."""
    try:
        text = content.decode("utf-8") if isinstance(content, bytes) else content
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8 text") from None
    return text.removeprefix("\ufeff")


def without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of JSON whose fields are `pairs`."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in found if names.count(name) > 1)
        raise ValueError(f"it has the field {twice!r:.60} twice")
    return found


def require_bounded(value: Any) -> None:
    """Raise `ValueError` unless all of a parsed value can be walked through and printed again."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        inner: list[Any] = []
        for each in level:
            if isinstance(each, dict):
                inner += [*each.keys(), *each.values()]
            elif isinstance(each, list):
                inner += each
            elif isinstance(each, str):
                require_unicode(each)
            elif isinstance(each, int) and abs(each) >= 10**MAX_DIGITS:
                raise ValueError(f"it has a number of more than {MAX_DIGITS} digits")
        if not inner:
            return
        level = inner
    raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels")


def require_unicode(text: str) -> None:
    """Raise `ValueError` if a text is half of a surrogate pair somewhere: no file can hold it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("it has half of a surrogate pair, which is not a character") from None


def why_not(error: Exception) -> str:
    """Why `read_file` could not read a file, without a period."""
    if isinstance(error, IsADirectoryError):
        return "it is a folder"
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)


def unreadable(name: str, kind: str, error: OSError | ValueError) -> Unreadable:
    """The error for a file that `error` kept from being read."""
    reason = why_not(error)
    reason = reason if len(reason) <= MAX_REASON else f"{reason[:MAX_REASON]} ..."
    return Unreadable(f"{name} is not a readable {kind} file: {reason}.", reason)
