"""What a study file says about the study as a whole; checked alike in a file that is to be run and
in one that was received with its runs."""

import math
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from smolctl.analysis.study_plan import KEPT
from smollm2.errors import UserError, did_you_mean
from smollm2.model.config import typed
from smollm2.parse import read_toml

POW2 = "pow2"  # of the card that said powers of two are better
CLAIMS = (POW2,)
# Control and format characters and line breaks: a terminal obeys them, and a card is torn by them.
UNPRINTABLE = ("Cc", "Cf", "Zl", "Zp")


@dataclass(frozen=True)
class StudyNotes:
    """The optional keys about a study as a whole.

    Args:
        superseded: why its verdicts are withdrawn; None if they are not.
        margin: in nats/token; smaller differences do not matter.
        claims: the published claims that its card judges, one of `CLAIMS`.
        license: of the trained weights, as the Hugging Face hub names it.
    """

    superseded: str | None = None
    margin: float | None = None
    claims: str | None = None
    license: str | None = None


def notes_of(table: Mapping[str, Any]) -> StudyNotes:
    """The notes among the keys of a study file.

    Raises:
        UserError: a value has the wrong type, a text is empty or more than a line, the margin is
            not positive and finite, or the claims are unknown.
    """
    notes = StudyNotes(
        **{
            field.name: typed(field.name, table[field.name], field.type)
            for field in fields(StudyNotes)
            if field.name in table
        }
    )
    for name in ("superseded", "claims", "license"):
        require_line(name, getattr(notes, name))
    if notes.claims is not None and notes.claims not in CLAIMS:
        raise UserError(
            f"claims takes {', '.join(CLAIMS)}, not {notes.claims!r}."
            f"{did_you_mean(notes.claims, CLAIMS)}"
        )
    if notes.margin is not None and not 0 < notes.margin < math.inf:
        raise UserError(
            f"margin is a positive number of nats/token such as 0.01, not {notes.margin:g}."
        )
    return notes


def require_line(name: str, text: str | None) -> None:
    """Raise `UserError` if a text is empty, more than a line or has characters without a glyph."""
    if text is None:
        return
    if not text.strip() or any(unicodedata.category(c) in UNPRINTABLE for c in text):
        raise UserError(f"{name} takes one line of printable text, not {text!r}.")


def read_notes(study: Path) -> StudyNotes:
    """The notes of the study in a folder; without a study file there are none.

    Raises:
        UserError: the file cannot be read, or as `notes_of`; the message names the file.
    """
    path = study / KEPT
    return read_toml(path, "study", notes_of) if path.exists() else StudyNotes()
