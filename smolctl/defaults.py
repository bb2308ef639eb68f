"""Defaults of a user's own: `smolctl.toml` in the current directory, else `[tool.smolctl]` of a
pyproject.toml there. What the command line says counts first, then the environment, then they.

    results = "/data/results"       # options of every command that has them: see `SHARED`
    study = "gqa"

    [train]                         # options of one command
    scale = "nano"
    batch-size = 8
"""

import typing
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from typer.core import TyperGroup

from smollm2.errors import UserError, did_you_mean

FILES = ("smolctl.toml", "pyproject.toml")
# Options that are given once for all commands, and those in which they mean something else: there
# --data says where the text is that a run has been trained on.
SHARED: dict[str, tuple[str, ...]] = {
    "results": (),
    "study": (),
    "device": (),
    "data": ("eval", "quantize"),
    "tokenizer": (),
}


class CommandsWithDefaults(TyperGroup):
    """Commands whose options have the defaults of a file, if there is one."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command; a `UserError` of it has a note of what it was given by the file."""
        file, by_key = read_defaults(self.commands)
        ctx.default_map = {name: by_name(self.commands[name], by_key[name]) for name in by_key}
        try:
            return super().invoke(ctx)
        except UserError as error:
            if keys := by_key.get(str(ctx.invoked_subcommand)):
                error.add_note(f"({file} has defaults here: {', '.join(keys)}.)")
            raise


def read_defaults(commands: Mapping[str, Any]) -> tuple[str, dict[str, dict[str, Any]]]:
    """The name of the file, and the values in it by command and by key; none without a file.

    Raises:
        UserError: the file cannot be read, or has an unknown key or a value of another type.
    """
    for name in FILES:
        if not Path(name).is_file():
            continue
        from smollm2.config import read_toml

        found = read_toml(Path(name), "defaults", partial(of_file, name, commands))
        if found is not None:
            return name, found
    return "", {}


def of_file(
    name: str, commands: Mapping[str, Any], table: dict[str, Any]
) -> dict[str, dict[str, Any]] | None:
    """The values of a file by command and by key; None if it has nothing to do with smolctl."""
    if name == "pyproject.toml":
        tools = table.get("tool")
        if not isinstance(tools, dict) or "smolctl" not in tools:
            return None
        table = tools["smolctl"]
        if not isinstance(table, dict):
            raise UserError("tool.smolctl is a table: write [tool.smolctl] and its keys below.")
    table = normal(table)
    sections = {key: normal(value) for key, value in table.items() if isinstance(value, dict)}
    shared = {key: value for key, value in table.items() if key not in sections}
    refuse_unknown("table", sections, commands)
    for key in shared.keys() - SHARED.keys():
        if having := [name for name, command in commands.items() if key in options(command)]:
            raise UserError(f"{key} is of one command: write it below [{'] or ['.join(having)}].")
    refuse_unknown("key", shared, SHARED)
    found = {}
    for command_name, command in commands.items():
        own, hints = sections.get(command_name, {}), options(command)
        refuse_unknown(f"key of [{command_name}]", own, hints)
        common = {
            key: value
            for key, value in shared.items()
            if key in hints and command_name not in SHARED[key]
        }
        found[command_name] = {
            key: checked(key, value, hints[key]) for key, value in (common | own).items()
        }
    return found


def normal(table: Mapping[str, Any]) -> dict[str, Any]:
    """Its keys with `_` for `-`.

    Raises:
        UserError: it has one both ways.
    """
    found: dict[str, Any] = {}
    for key, value in table.items():
        if (name := key.replace("-", "_")) in found:
            raise UserError(f"{key} is there twice, once with another line between its words.")
        found[name] = value
    return found


def refuse_unknown(what: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise `UserError` for the first of the keys that is not known."""
    for key in given:
        if key not in known:
            raise UserError(
                f"unknown {what} {key!r}.{did_you_mean(key, list(known))} There are "
                f"{', '.join(known)}."
            )


def options(command: Any) -> dict[str, Any]:
    """The types of the options of a command, and of those in it, by their keys in a file."""
    types = typing.get_type_hints(command.callback)
    found = {key: types[param.name] for key, param in parameters(command).items()}
    for inner in getattr(command, "commands", {}).values():
        found |= options(inner)
    return found


def parameters(command: Any) -> dict[str, Any]:
    """A command's own options by their keys in a file, `batch_size` for `--batch-size`."""
    return {
        param.opts[0].removeprefix("--").replace("-", "_"): param
        for param in command.params
        if param.param_type_name == "option" and param.expose_value
    }


def checked(key: str, value: Any, hint: Any) -> Any:
    """`value`, which must be of the type that `hint` says."""
    from smollm2.config import typed

    (kind,) = [part for part in typing.get_args(hint) or (hint,) if part is not type(None)]
    if typing.get_origin(kind) is list:
        if not isinstance(value, list):
            raise UserError(f"{key} takes a list, not {value!r}.")
        return [typed(key, each, *typing.get_args(kind)) for each in value]
    if kind is Path or (kind is str and type(value) is int):  # embedding = 8
        return typed(key, str(value) if kind is str else value, str)
    return typed(key, value, kind)


def by_name(command: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values by the names of parameters, as a command and those in it look them up."""
    own = {p.name: values[key] for key, p in parameters(command).items() if key in values}
    inner = getattr(command, "commands", {})
    return own | {name: by_name(each, values) for name, each in inner.items()}
