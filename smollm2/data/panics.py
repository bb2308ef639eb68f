"""Panics of the `tokenizers` library, which is written in Rust, as errors.

A panic is a `BaseException`, so `except Exception` lets it pass, and Rust prints it to stderr.
"""

import contextlib
import os
import sys
from collections.abc import Iterator

from smollm2.errors import reason

STDERR = 2  # Rust writes to the descriptor, whatever `sys.stderr` is


@contextlib.contextmanager
def no_panic() -> Iterator[None]:
    """Raise `ValueError`, as other errors of the library are, instead of a panic."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # the class cannot be imported
            raise
        raise ValueError(f"the tokenizers library panics: {reason(error)}") from error


@contextlib.contextmanager
def no_words() -> Iterator[None]:
    """Discard what native code prints to stderr, as a panic does; for a short time only, since
    other threads are not heard either."""
    try:
        nowhere, saved = os.open(os.devnull, os.O_WRONLY), os.dup(STDERR)
    except OSError:  # it is closed
        yield
        return
    with contextlib.suppress(AttributeError):  # no `sys.stderr`, as in a windowed program
        sys.stderr.flush()
    os.dup2(nowhere, STDERR)
    try:
        yield
    finally:
        os.dup2(saved, STDERR)
        os.close(saved)
        os.close(nowhere)
