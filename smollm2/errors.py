"""The two ways things go wrong: the request is invalid, or the work failed.

A message names a setting in backticks, as `seq_len` or with a value as `seq_len=512`; the
caller may turn that into what the user types, such as a command-line flag.
"""

import difflib
from collections.abc import Collection, Sequence
from itertools import islice

LONGEST_NAME = 60  # characters of a name in a message
LONGEST_REASON = 200  # characters of another library's message


class UserError(ValueError):
    """The request is invalid; the message says what was expected and what to change.

    The command line prints the message alone and exits with code 2.

    Args:
        field: the setting that the error is about, such as `seq_len`, if it is about one.
    """

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class RunExists(UserError):
    """The directory of the new run exists already."""


class RunBusy(UserError):
    """Another process is writing the run, or has just finished it."""


class RunError(RuntimeError):
    """The request was valid but the work failed (full disk, loss not finite); exit code 1."""


def did_you_mean(word: str, choices: Sequence[str]) -> str:
    """`" Did you mean 'pow2'?"` for the choice nearest to `word`, or an empty string."""
    near = difflib.get_close_matches(word, choices, cutoff=0.5)
    near.sort(key=lambda choice: not choice.startswith(word))  # `seed` is `seeds`, not `speed`
    return f" Did you mean {near[0]!r}?" if near else ""


def first_few(names: Collection[object], most: int = 8) -> str:
    """The first `most` of `names`, separated by commas, and how many there are beyond these.

    A name may come from a file: a long one is cut, and what cannot be printed is escaped.
    """
    shown = ", ".join(_printable(str(name)) for name in islice(names, most))
    more = len(names) - most
    return f"{shown} and {more:,} more" if more > 0 else shown


def reason(error: BaseException) -> str:
    """The message of another library's error, which may quote a file: one short, printable line."""
    return _printable(" ".join(str(error).split()), LONGEST_REASON) or type(error).__name__


def _printable(text: str, longest: int = LONGEST_NAME) -> str:
    short = text if len(text) <= longest else f"{text[: longest - 3]}..."
    return short if short.isprintable() else repr(short)[1:-1]


def unknown(kind: str, name: str, choices: Sequence[str], *, field: str | None = None) -> UserError:
    """The error for a `name` that is not one of `choices`, which it lists; `kind` as in "task"."""
    return UserError(
        f"Unknown {kind} {name!r}.{did_you_mean(name, choices)} Available: {', '.join(choices)}.",
        field=field,
    )
