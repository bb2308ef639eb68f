"""Messages and progress shown to the user during work.

Modules outside the command line call `say`, `warn` and `progress` without knowing the terminal. The
command line passes its console to `use`; until then messages go to stderr and progress is hidden.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Protocol

# Called with what is being done, how much of it is done, and the total (None: unknown).
Show = Callable[[str, int, int | None], None]


class Talker(Protocol):
    """Where messages and progress go."""

    def say(self, text: str) -> None:
        """Print a message."""

    def warn(self, text: str) -> None:
        """Print a warning."""

    def progress(self) -> AbstractContextManager[Show]:
        """A context manager that shows progress until its end."""


class PlainTalker:
    """Messages on stderr; no progress."""

    def say(self, text: str) -> None:
        print(text, file=sys.stderr)

    def warn(self, text: str) -> None:
        self.say(f"Warning: {text}")

    @contextlib.contextmanager
    def progress(self) -> Iterator[Show]:
        yield lambda what, done, total: None


_talker: Talker = PlainTalker()


def use(talker: Talker) -> None:
    """Send all further messages to `talker`."""
    global _talker
    _talker = talker


def say(text: str) -> None:
    """Show the user a message."""
    _talker.say(text)


def warn(text: str) -> None:
    """Warn the user."""
    _talker.warn(text)


def progress() -> AbstractContextManager[Show]:
    """A context manager that yields a function for reporting progress."""
    return _talker.progress()
