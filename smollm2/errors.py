"""The two ways things go wrong: what was asked cannot be done, or doing it failed."""

from collections.abc import Sequence


class UserError(ValueError):
    """What was asked is wrong; the message says what was expected and what to type next.

    The command line prints the message alone and exits with code 2.
    """


class RunExists(UserError):
    """What is to be a new run's directory is there already."""


class RunBusy(UserError):
    """Another process is writing the run, or has just finished it."""


class RunError(RuntimeError):
    """The request was fine but the work failed (full disk, loss not finite); exit code 1."""


def did_you_mean(word: str, choices: Sequence[str]) -> str:
    """`" Did you mean 'pow2'?"` for the nearest of `choices`, or an empty string."""
    import difflib

    near = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    return f" Did you mean {near[0]!r}?" if near else ""
