"""The keys and values of a study file: checked when it is read, and written as TOML."""

import contextlib
import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from smollm2.errors import UserError, did_you_mean
from smollm2.model.config import typed
from smollm2.parse import with_underscores

MOST_SEEDS = 1000  # of an arm or a tuning
LARGEST_SEED = 2**63 - 1  # that a run takes
# As the library names a setting: `seed` or `seq_len=512`.
SETTING = re.compile(r"`(\w+)(?:=([^`]*))?`")
RENAMED = {"settings": "set"}  # keys that differ from the library's name


@contextlib.contextmanager
def errors_of(file: Path) -> Iterator[None]:
    """A context manager whose errors begin with the file, and name settings by its keys."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{file}: {SETTING.sub(_key, str(error))}") from None


def _key(match: re.Match[str]) -> str:
    name, value = RENAMED.get(match[1], match[1]), match[2]
    return name if value is None else f"{name} = {value}"


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
    """A list of different whole numbers that can be seeds, at least one."""
    if isinstance(value, list) and len(value) > MOST_SEEDS:
        raise UserError(f"{name} has {len(value):,} numbers; give at most {MOST_SEEDS:,}.")
    good = isinstance(value, list) and value and all(type(n) is int for n in value)
    if (
        not good
        or len(set(value)) < len(value)
        or not 0 <= min(value) <= max(value) <= LARGEST_SEED
    ):
        raise UserError(
            f"{name} takes a list of different whole numbers from 0 to 2^63 - 1, such as "
            f"[0, 1, 2], not {value!r}."
        )
    return tuple(value)


def typed_fields(cls: type, values: Mapping[str, Any], table: str) -> dict[str, Any]:
    """The values of a table whose keys are fields of `cls`, each of its type."""
    types = {field.name: field.type for field in dataclasses.fields(cls)}
    return {key: typed(f"{key} of {table}", value, types[key]) for key, value in values.items()}


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
