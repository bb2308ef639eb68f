"""The keys and values of a study file: checked when it is read, and written as TOML."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from smollm2.errors import UserError, did_you_mean
from smollm2.parse import with_underscores

MOST_SEEDS = 1000  # of an arm or a tuning


def refuse_unknown_keys(values: Mapping[str, Any], known: list[str], where: str) -> None:
    """Raise `UserError` for the first key that is not one of `known`, which it lists."""
    for key in values:
        if key not in known:
            raise UserError(
                f"unknown key {key!r} in {where}.{did_you_mean(key, known)} "
                f"Available: {', '.join(known)}."
            )


def subtable(table: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The table [name] of a file, empty if it has none; its keys may have `-` for `_`."""
    value = table.get(name, {})
    if not isinstance(value, dict):
        raise UserError(f"{name} must be a table: write [{name}] and its keys below.")
    return with_underscores(value)


def whole_numbers(name: str, value: Any) -> tuple[int, ...]:
    """A list of different whole numbers, at least one."""
    if isinstance(value, list) and len(value) > MOST_SEEDS:
        raise UserError(f"{name} has {len(value):,} numbers; give at most {MOST_SEEDS:,}.")
    good = isinstance(value, list) and value and all(type(n) is int and n >= 0 for n in value)
    if not good or len(set(value)) < len(value):
        raise UserError(
            f"{name} takes a list of different whole numbers such as [0, 1, 2], not {value!r}."
        )
    return tuple(value)


def strings(name: str, value: Any, example: str) -> list[str]:
    """A list of texts."""
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise UserError(f"{name} takes a list such as {example}, not {value!r}.")
    return value


def fields_of(cls: type) -> list[str]:
    """The names of a dataclass's fields."""
    return [field.name for field in dataclasses.fields(cls)]


def toml_lines(values: Mapping[str, Any]) -> list[str]:
    """A line of TOML for each value that is not None."""
    return [f"{name} = {toml(value)}" for name, value in values.items() if value is not None]


def toml(value: Any) -> str:
    """A value in TOML, which for the types of a study file is JSON."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
