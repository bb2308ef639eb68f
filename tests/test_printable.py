"""Text from files, made fit for a terminal."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smolctl.printable import LONGEST_MESSAGE, printable, shortened

HARMLESS = "\n\t"
BIDIRECTIONAL = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("a\rb\x9b31m", r"a\x0db\x9b31m"),
        ("caf\udce9.jsonl", r"caf\xe9.jsonl"),
        ("\ud800", r"\ud800"),
        ("txt\u202egpj", r"txt\u202egpj"),
        ("Grüße, 海 – ½ 😀\n\tend", "Grüße, 海 – ½ 😀\n\tend"),
    ],
)
def test_what_a_terminal_obeys_is_an_escape(text, expected):
    assert printable(text) == expected


@given(st.text(st.characters(categories=None)))
def test_no_control_character_and_no_surrogate_is_left(text):
    found = printable(text)
    found.encode()
    for character in found:
        assert character in HARMLESS or unicodedata.category(character) not in ("Cc", "Cs", "Zl")
        assert character not in BIDIRECTIONAL


@given(st.text(max_size=3000))
def test_a_message_keeps_its_beginning_and_end(text):
    short = shortened(text)
    if len(text) <= LONGEST_MESSAGE:
        assert short == text
    else:
        assert len(short) == LONGEST_MESSAGE
        begin, _, end = (short[:600], short[600:700], short[-300:])
        assert text.startswith(begin)
        assert text.endswith(end)
