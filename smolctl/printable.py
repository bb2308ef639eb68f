"""Text from files, names and errors, made fit for a terminal."""

import re

# Control characters, changes of direction, and surrogates, which are no characters. A line break
# and a tab stay.
UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
LONGEST_MESSAGE = 1000  # characters


def printable(text: str) -> str:
    """`text` with control characters, changes of direction and surrogates as escapes, such as
    `\\x1b`; a byte of a file name that is not UTF-8 as itself, such as `\\xe9`."""
    return UNPRINTABLE.sub(_escape, text)


def shortened(text: str, longest: int = LONGEST_MESSAGE) -> str:
    """`text`, with `…` for its middle if it has more than `longest` characters."""
    if len(text) <= longest:
        return text
    n_last = longest // 3
    return f"{text[: longest - n_last - 1]}…{text[len(text) - n_last :]}"


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    if 0xDC80 <= code <= 0xDCFF:  # how Python keeps a byte that is not UTF-8
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
