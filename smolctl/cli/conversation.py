"""A conversation with a model, for `generate --chat`: on a terminal a line is a message."""

import contextlib
import sys

from smolctl.cli.app import received
from smolctl.cli.console import say
from smolctl.cli.text_writer import TextWriter, said_speed
from smolctl.studies.models import Model
from smollm2.errors import UserError
from smollm2.inference.chat import ChatTemplate, Message
from smollm2.inference.text_stream import Ending
from smollm2.runs.text_settings import default_template, special_tokens, text_settings_of

EXIT = "/exit"
PROMPT = "> "
ENDS_BY = f"Ctrl-D or {EXIT} ends the conversation."


def chat_template_of(model: Model) -> ChatTemplate:
    """The template that a model brought along.

    Raises:
        UserError: it has none, or its files are damaged.
    """
    files = text_settings_of(model.run)
    text = default_template(files)
    if text is None:
        raise UserError(
            f"{model.label} has no chat template: it was not trained for conversations. Omit "
            "--chat to continue the prompt as it is, or name an instruct model, such as "
            "hf:HuggingFaceTB/SmolLM2-135M-Instruct."
        )
    return ChatTemplate(text, special_tokens(files))


def opening(system: str | None) -> list[Message]:
    """The messages before the first of the user."""
    return [] if system is None else [{"role": "system", "content": system}]


def converse(
    writer: TextWriter, template: ChatTemplate, system: str | None, with_speed: bool
) -> None:
    """Answer the lines that are typed, until they end.

    Raises:
        UserError: as `ChatTemplate.prompt`.
    """
    say(f"Each line is a message. Ctrl-C stops an answer. {ENDS_BY}")
    messages = opening(system)
    n_opening = len(messages)
    while (line := next_line()) is not None:
        messages.append({"role": "user", "content": line})
        tokens = fitting(messages, n_opening, writer, template)
        if tokens is None:
            messages.pop()
            continue
        for answer in writer.write(tokens):
            messages.append({"role": "assistant", "content": answer.text})
            if answer.ending is Ending.INTERRUPT:
                received.clear()  # Ctrl-C has been obeyed
            elif answer.ending is Ending.MAX_NEW_TOKENS:
                say(f"The answer was cut after --max-new-tokens {writer.max_new_tokens}.")
            if with_speed:
                say(said_speed(len(tokens), [answer]))


def next_line() -> str | None:
    """The next line that is not blank; None at the end of the conversation."""
    with contextlib.suppress(ImportError):  # Windows edits lines itself
        import readline  # noqa: F401  # lets `input` edit lines
    while True:
        try:
            line = input(visible_prompt())
            line.encode()
        except EOFError:
            say("")
            return None
        except KeyboardInterrupt:
            received.clear()
            say(f"\n{ENDS_BY}")
        except UnicodeError:
            say("That was not UTF-8 text; type it again.")
        else:
            if line.strip() == EXIT:
                return None
            if line.strip():
                return line


def visible_prompt() -> str:
    """What `input` is to print before a line. It prints on stdout; where that is not the terminal,
    it has the answers alone, and the prompt goes to stderr."""
    if sys.stdout.isatty():
        return PROMPT
    sys.stderr.write(PROMPT)
    sys.stderr.flush()
    return ""


def fitting(
    messages: list[Message], n_opening: int, writer: TextWriter, template: ChatTemplate
) -> list[int] | None:
    """The tokens of a conversation, from which the oldest turns are dropped until it fits into the
    model's context; None, with a sentence, if its last message alone does not.

    Args:
        n_opening: the first messages, which stay.
    """
    for start in range(n_opening, len(messages), 2):  # a message and its answer
        tokens = writer.encode(template.prompt(messages[:n_opening] + messages[start:]))
        if len(tokens) > writer.room:
            continue
        if n_dropped := (start - n_opening) // 2:
            turns = "the oldest turn is" if n_dropped == 1 else f"the {n_dropped} oldest turns are"
            say(f"The model's context of {writer.context} tokens is full: {turns} forgotten.")
            del messages[n_opening:start]
        return tokens
    say(
        f"The message makes a prompt of {len(tokens)} tokens, and only {writer.room} fit into the "
        f"model's context of {writer.context} with --max-new-tokens {writer.max_new_tokens}; type "
        "a shorter one."
    )
    return None
