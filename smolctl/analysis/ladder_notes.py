"""[ladder] of a study file: the sizes at which a study is repeated, and how far to look beyond.

    [ladder]
    sizes = ["0.5M", "1M", "2M"]    # non-embedding parameters of every arm
    tokens_per_parameter = 20       # of training, at every size
    rate = "tune"                   # every size by [tune]; or "transfer"
    check = "2M"                    # the size at which transferred rates are checked
    at = "135M"                     # the size that the verdict is about

Every size is a study of its own, a *rung*: `results/NAME-1m`. The file that it keeps has this table
too, with `name` and `rung`, which say whose rung it is.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smolctl.analysis.study_plan import KEPT
from smollm2.errors import UserError, did_you_mean
from smollm2.model.config import typed
from smollm2.parse import read_toml, with_underscores

TUNE, TRANSFER = "tune", "transfer"  # values of `rate`
UNITS = {"k": 1e3, "M": 1e6, "B": 1e9}
USUAL_TOKENS_PER_PARAMETER = 20.0  # Hoffmann et al. 2022, arXiv:2203.15556, table 3
LARGEST_SIZE = 1e13
MOST_SIZES = 20
EXAMPLE = '["0.5M", "1M", "2M"]'


@dataclass(frozen=True)
class LadderNotes:
    """A size ladder; sizes are as they are typed, such as `0.5M`.

    Args:
        sizes: ascending.
        tokens_per_parameter: training tokens for each non-embedding parameter.
        rate: `tune` or `transfer`.
        check: the size at which transferred rates are compared with tuned ones.
        at: the size that the verdict is about.
        name: of the ladder, and `rung`, the size of one of its studies; None in the file that a
            user writes.
    """

    sizes: tuple[str, ...]
    tokens_per_parameter: float
    rate: str
    check: str
    at: str
    name: str | None = None
    rung: str | None = None

    @property
    def smallest(self) -> str:
        return self.sizes[0]

    @property
    def is_extrapolated(self) -> bool:
        """Whether the verdict is about a size beyond the measured ones."""
        smallest, largest = parsed_size(self.sizes[0]), parsed_size(self.sizes[-1])
        return not smallest <= parsed_size(self.at) <= largest

    def reach(self, size: str) -> float:
        """Log size from the smallest one, in units of its distance to the size that checks the
        rates."""
        start, check, here = (
            math.log(parsed_size(one)) for one in (self.smallest, self.check, size)
        )
        return (here - start) / (check - start)

    def is_transferred(self, size: str) -> bool:
        """Whether the rates at a size are those of the smallest one, scaled."""
        return self.rate == TRANSFER and size not in (self.smallest, self.check)


def ladder_notes_of(table: Mapping[str, Any]) -> LadderNotes:
    """The notes in a table [ladder].

    Raises:
        UserError: a key is unknown, or a value has the wrong type or makes no sense.
    """
    table = with_underscores(dict(table))
    known = ["sizes", "tokens_per_parameter", "rate", "check", "at", "name", "rung"]
    for key in table:
        if key not in known:
            raise UserError(
                f"unknown key {key!r} in [ladder].{did_you_mean(key, known)} "
                f"Available: {', '.join(known)}."
            )
    sizes = checked_sizes(table.get("sizes"))
    tokens = table.get("tokens_per_parameter", USUAL_TOKENS_PER_PARAMETER)
    tokens = typed("tokens_per_parameter of [ladder]", tokens, float)
    if not 0 < tokens <= LARGEST_SIZE:
        raise UserError(
            "tokens_per_parameter of [ladder] is a positive number such as 20, at most "
            f"{LARGEST_SIZE:g}, not {tokens:g}."
        )
    rate = table.get("rate", TUNE)
    if rate not in (TUNE, TRANSFER):
        raise UserError(f'rate of [ladder] takes "tune" or "transfer", not {rate!r}.')
    check, at = table.get("check", sizes[-1]), table.get("at", sizes[-1])
    parsed_size(at, "at of [ladder]")
    name, rung = (
        None if table.get(key) is None else typed(f"{key} of [ladder]", table[key], str)
        for key in ("name", "rung")
    )
    if check not in sizes[1:]:
        raise UserError(
            f"check of [ladder] is one of its sizes above the smallest ({', '.join(sizes[1:])}), "
            f"not {check!r}."
        )
    if (name is None) != (rung is None) or (rung is not None and rung not in sizes):
        raise UserError(
            f"[ladder] has name = {name!r} and rung = {rung!r}: only the file of one of its sizes "
            "has them, and they name the ladder and that size."
        )
    return LadderNotes(sizes, tokens, rate, check, at, name, rung)


def checked_sizes(value: Any) -> tuple[str, ...]:
    """The sizes of a ladder.

    Raises:
        UserError: they are no list of at least two ascending sizes.
    """
    if not isinstance(value, list) or not 2 <= len(value) <= MOST_SIZES:
        raise UserError(
            f"[ladder] takes sizes = {EXAMPLE}, a list of 2 to {MOST_SIZES}, not {value!r:.60}."
        )
    numbers = [parsed_size(text, "a size of [ladder]") for text in value]
    if sorted(set(numbers)) != numbers:
        raise UserError(f"the sizes of [ladder] ascend, as in {EXAMPLE}; these do not: {value}.")
    return tuple(value)


def parsed_size(text: Any, what: str = "a size") -> float:
    """`0.5M` as 500,000.

    Raises:
        UserError: it is no such text, zero, or beyond 10^13.
    """
    match = re.fullmatch(r"(\d{1,6}(?:\.\d{1,6})?)([kMB])", text) if isinstance(text, str) else None
    number = float(match[1]) * UNITS[match[2]] if match else 0.0
    if not 0 < number <= LARGEST_SIZE:
        raise UserError(f'{what} is a number of parameters such as "0.5M", not {text!r:.40}.')
    return number


def size_text(number: float) -> str:
    """1,234,567 as `1.23M`: three digits, as `parsed_size` reads it."""
    unit = next((unit for unit in ("B", "M") if float(f"{number:.3g}") >= UNITS[unit]), "k")
    return f"{float(f'{number / UNITS[unit]:.3g}'):.6f}".rstrip("0").rstrip(".") + unit


def rung_name(ladder: str, size: str) -> str:
    """The name of the study of one size: `gqa-0.5m`."""
    return f"{ladder}-{size.lower()}"


def read_ladder_notes(study: Path) -> LadderNotes | None:
    """The ladder that the study in a folder is a rung of; None if it is none.

    Raises:
        UserError: its file cannot be read, or as `ladder_notes_of`; the message names the file.
    """
    path = study / KEPT
    return read_toml(path, "study", notes_in) if path.exists() else None


def notes_in(table: Mapping[str, Any]) -> LadderNotes | None:
    """See `read_ladder_notes`."""
    own = table.get("ladder")
    return ladder_notes_of(own) if isinstance(own, dict) and "rung" in own else None
