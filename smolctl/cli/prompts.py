"""The prompt of `generate`: its text, and its tokens as far as they fit."""

import sys

from smolctl.cli.console import warn
from smolctl.cli.text_writer import TextWriter
from smollm2.errors import UserError


def read_prompt(prompt: str | None) -> str:
    """The text of --prompt, or else stdin with all of its line breaks.

    Raises:
        UserError: it is empty or not UTF-8.
    """
    if prompt is None and sys.stdin.isatty():
        raise UserError('There is nothing to continue; give --prompt "Once upon a time".')
    try:
        # Python would read every kind of line break as one.
        text = sys.stdin.buffer.read().decode(sys.stdin.encoding) if prompt is None else prompt
    except UnicodeDecodeError:
        raise UserError("The prompt is not UTF-8 text; convert it first.") from None
    require_utf8(text, "The prompt")
    if not text:
        raise UserError('The prompt is empty; give some text, such as --prompt "Once upon a time".')
    return text


def require_utf8(text: str, what: str) -> None:
    """Raise `UserError` if a text from the command line has bytes that are not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"{what} is not UTF-8 text; convert it first.") from None


def prompt_tokens(text: str, writer: TextWriter, truncate: bool, is_chat: bool) -> list[int]:
    """The tokens of `text`; with `truncate`, the last ones that fit, with a warning.

    Raises:
        UserError: they do not fit into the model's context.
    """
    room, tokens = writer.room, writer.encode(text)
    if len(tokens) > room:
        numbers = (
            f"The prompt has {len(tokens)} tokens, but only {room} fit into the model's "
            f"context of {writer.context} with --max-new-tokens {writer.max_new_tokens}"
        )
        if not truncate:
            instead = "" if is_chat else ", or drop its start with --truncate"
            raise UserError(f"{numbers}; shorten it{instead}.")
        warn(f"{numbers}: the first {len(tokens) - room} are dropped.")
        tokens = tokens[-room:]
    run = writer.loaded.source.run
    if run.is_imported:  # its training is unknown
        return tokens
    if len(tokens) + writer.max_new_tokens > (seen := run.protocol.seq_len):
        warn(
            f"{run.name} was trained on sequences of {seen} tokens; expect worse text beyond that."
        )
    return tokens
