"""A user's defaults: `smolctl.toml` in the current directory, or `[tool.smolctl]` in
pyproject.toml.

The command line takes precedence, then the environment, then these.

    results = "/data/results"       # for every command with the option; see `SHARED`
    study = "gqa"

    [train]                         # for one command
    scale = "nano"
    micro-batch-size = 8
"""

import json
import typing
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from typer.core import TyperGroup

from smollm2.errors import UserError, did_you_mean
from smollm2.model.config import settings_of, typed
from smollm2.parse import read_toml, with_underscores

FILES = ("smolctl.toml", "pyproject.toml")
# Options that can be set for all commands, and the commands that ignore them: there --data is the
# text that a run was trained on, or another one.
NUMBERS_AS_TEXT = ("embedding",)  # options that take a number or a word
SHARED: dict[str, tuple[str, ...]] = {
    "results": (),
    "study": (),
    "device": (),
    "data": ("compare", "eval", "plan", "quantize", "study"),
    "tokenizer": (),
}

# Options that take a list, or text that is one, with an example.
LISTS: dict[str, Any] = {
    "set": ["weight_decay=0.1"],
    "keep_step": [100, 200],
    "section": ["quality", "speed"],
    "also": ["gqa-full"],
    "stop": ["Q:"],
    "data": ["novels.jsonl.gz"],  # of `compare`; elsewhere it is one text
    "tasks": "arc_easy,hellaswag",
}


class CommandsWithDefaults(TyperGroup):
    """Commands whose options take defaults from a file, if there is one."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command; add a note on the defaults in use to its `UserError`."""
        file, by_key = read_defaults(self.commands)
        ctx.default_map = {name: by_name(self.commands[name], by_key[name]) for name in by_key}
        try:
            return super().invoke(ctx)
        except UserError as error:
            if keys := by_key.get(str(ctx.invoked_subcommand)):
                error.add_note(f"({file} has defaults here: {', '.join(keys)}.)")
            raise


def read_defaults(commands: Mapping[str, Any]) -> tuple[str, dict[str, dict[str, Any]]]:
    """The file's name, and its values by command and key; empty without a file.

    Raises:
        UserError: the file cannot be read, or has an unknown key or a value of another type.
    """
    for name in FILES:
        if not Path(name).is_file():
            continue

        found = read_toml(Path(name), "defaults", partial(of_file, name, commands))
        if found is not None:
            return name, found
    return "", {}


def of_file(
    name: str, commands: Mapping[str, Any], table: dict[str, Any]
) -> dict[str, dict[str, Any]] | None:
    """The values of a file by command and key; None if it has no section for smolctl."""
    if name == "pyproject.toml":
        tools = table.get("tool")
        if not isinstance(tools, dict) or "smolctl" not in tools:
            return None
        table = tools["smolctl"]
        if not isinstance(table, dict):
            raise UserError(
                "tool.smolctl must be a table: write [tool.smolctl] and its keys below."
            )
    table = with_underscores(table)
    sections = {
        key: with_underscores(value) for key, value in table.items() if isinstance(value, dict)
    }
    shared = {key: value for key, value in table.items() if key not in sections}
    refuse_unknown("table", sections, commands)
    for key in shared.keys() - SHARED.keys():
        if having := [name for name, command in commands.items() if key in options(command)]:
            raise UserError(
                f"{key} is an option of single commands: write it below [{'] or ['.join(having)}]."
            )
    refuse_unknown("key", shared, SHARED)
    found = {}
    for command_name, command in commands.items():
        own, hints = sections.get(command_name, {}), options(command)
        older = {key for key, param in own_options(command).items() if param.hidden}
        known = [key for key in hints if key not in older]
        refuse_unknown(f"key of [{command_name}]", [k for k in own if k not in older], known)
        common = {
            key: value
            for key, value in shared.items()
            if key in hints and command_name not in SHARED[key]
        }
        found[command_name] = {
            key: value_of_type(key, value, hints[key]) for key, value in (common | own).items()
        }
    return found


def refuse_unknown(what: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise `UserError` for the first unknown key."""
    for key in given:
        if key not in known:
            raise UserError(
                f"unknown {what} {key!r}.{did_you_mean(key, list(known))} Available: "
                f"{', '.join(known)}."
            )


def options(command: Any) -> dict[str, Any]:
    """The types of the options of a command and its subcommands, by their keys in a file."""
    types = typing.get_type_hints(command.callback)
    found = {key: types[param.name] for key, param in own_options(command).items()}
    for inner in getattr(command, "commands", {}).values():
        found |= options(inner)
    return found


def own_options(command: Any) -> dict[str, Any]:
    """A command's own options by their keys in a file, `seq_len` for `--seq-len`."""
    return {
        param.opts[0].removeprefix("--").replace("-", "_"): param
        for param in command.params
        if param.param_type_name == "option" and param.expose_value
    }


def value_of_type(key: str, value: Any, hint: Any) -> Any:
    """`value`, checked to be of the type `hint`."""
    (kind,) = [part for part in typing.get_args(hint) or (hint,) if part is not type(None)]
    if key == "set":
        return settings_of(value)
    if typing.get_origin(kind) is list or isinstance(LISTS.get(key), str):
        texts = value if isinstance(value, list) else [value]
        (item,) = typing.get_args(kind) or (kind,)
        if type(value) is not type(LISTS[key]) or any(type(each) is not item for each in texts):
            raise UserError(f"{key} takes a list such as {json.dumps(LISTS[key])}, not {value!r}.")
        return value
    is_number = kind is str and type(value) is int and key in NUMBERS_AS_TEXT
    if kind is Path or is_number:
        return typed(key, str(value) if kind is str else value, str)
    return typed(key, value, kind)


def by_name(command: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values by parameter name, for a command and its subcommands."""
    own = {p.name: values[key] for key, p in own_options(command).items() if key in values}
    inner = getattr(command, "commands", {})
    return own | {name: by_name(each, values) for name, each in inner.items()}
