"""The committed studies: their cards follow from their files, and they hold no weights."""

import re
from pathlib import Path

import pytest
from support.command import run_main

ROOT = Path(__file__).parents[2]
FOUND = [*ROOT.glob("MODEL_CARD.md"), *(ROOT / "results").glob("*/MODEL_CARD.md")]
CARDS = sorted(path.relative_to(ROOT) for path in FOUND)
CARDS = [path for path in CARDS if path.parent.name not in ("runs", "demo")]  # are not committed


@pytest.mark.parametrize("card", CARDS, ids=lambda path: path.parent.name)
def test_a_committed_card_follows_from_its_files(capsys, monkeypatch, card):
    monkeypatch.chdir(ROOT)
    code, out, _ = run_main(capsys, "report", "--check", str(card))
    assert (code, out) == (0, "")


def test_there_are_committed_studies():
    assert CARDS


def test_the_readme_quotes_whole_sentences_of_the_card():
    quotes = re.findall(r"^> \* (.*)$", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE)
    card = (ROOT / "MODEL_CARD.md").read_text("utf-8").splitlines()
    assert quotes
    assert [quote for quote in quotes if f"- {quote}" not in card] == []
