"""The markup of a sentence: `code`, **strong** and *emphasis*; everything else is text.

Names in sentences may come from files of others, so a renderer escapes every span for its format.
"""

import re
from collections.abc import Iterator
from enum import StrEnum

from smolctl.printable import printable

MARKUP = re.compile(
    r"(?<!`)`([^`]+)`(?!`)"  # two that touch would be other code in Markdown
    r"|(?<![^\s(])(?:\*\*(?!\s)([^*]+)(?<!\s)\*\*|\*(?!\s)([^*]+)(?<!\s)\*)(?![^\s.,;:)])"
)


class Span(StrEnum):
    """What a part of a sentence is."""

    TEXT = "text"
    CODE = "code"
    STRONG = "strong"
    EMPHASIS = "em"


def spans(sentence: str) -> Iterator[tuple[Span, str]]:
    """The parts of a sentence, each one line of printable characters. Strong and emphasized parts
    may hold spans of their own."""
    sentence = one_line(sentence)
    end = 0
    for match in MARKUP.finditer(sentence):
        yield Span.TEXT, sentence[end : match.start()]
        kind = (Span.CODE, Span.STRONG, Span.EMPHASIS)[int(match.lastindex or 1) - 1]
        yield kind, match[int(match.lastindex or 1)]
        end = match.end()
    yield Span.TEXT, sentence[end:]


def one_line(text: str) -> str:
    """The text on one line, with an escape for each character that cannot be printed."""
    return printable(re.sub(r"[^\S ]+", " ", text)).strip()


def code_lines(text: str) -> str:
    """The lines of a block of code, each with its end."""
    return printable(text).removesuffix("\n") + "\n"
