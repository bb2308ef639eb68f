"""The settings that the library names are shown as the flags that a user types."""

import ast
import re
from pathlib import Path

import pytest
import typer
from support.command import run_main

import smollm2
from smolctl.cli.flags import FLAGS, SETTING, error_message, with_flags
from smolctl.cli.root import app
from smollm2.errors import UserError


@pytest.mark.parametrize(
    ("of_the_library", "on_the_terminal"),
    [
        ("Use a shorter `seq_len`.", "Use a shorter --seq-len."),
        ("Try `grad_accum=2`.", "Try --grad-accum 2."),
        ("Use `compile=False`.", "Use --no-compile."),
        ("or `vocab_size=300`.", "or --set vocab_size=300."),
        ("`settings=lr=0.2`", "--set lr=0.2"),
        (
            "Needs `pip install datasets`, or `train:N`.",
            "Needs `pip install datasets`, or `train:N`.",
        ),
        ("There is no `nonsense=3`.", "There is no `nonsense=3`."),
    ],
)
def test_settings_in_backticks_become_flags(of_the_library, on_the_terminal):
    assert with_flags(of_the_library) == on_the_terminal


def test_the_flag_of_the_field_comes_first_unless_the_message_names_it():
    assert error_message(UserError("Unknown dtype.", field="dtype")) == "--dtype: Unknown dtype."
    assert error_message(UserError("`dtype` is odd.", field="dtype")) == "--dtype is odd."
    assert error_message(UserError("It is odd.", field="of_no_flag")) == "It is odd."
    assert error_message(UserError("It is odd.")) == "It is odd."


def test_every_flag_is_an_option_of_a_command():
    group = typer.main.get_command(app)
    commands = [group]
    options: set[str] = set()
    for command in commands:
        commands.extend(getattr(command, "commands", {}).values())
        for parameter in command.params:
            options |= {*parameter.opts, *parameter.secondary_opts}
    assert {flag.split()[0] for flag in FLAGS.values()} <= options
    assert "--no-compile" in options


def test_the_library_names_no_flag_and_the_field_of_every_error_has_one():
    for path in Path(smollm2.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                text = node.value.replace("`--help`", "")
                assert not re.search(r"(?<![\w-])--[a-z]", text), f"{path}: {text}"
            if isinstance(node, ast.Call):
                for keyword in node.keywords:
                    if keyword.arg == "field" and isinstance(keyword.value, ast.Constant):
                        assert keyword.value.value in FLAGS, f"{path}: {keyword.value.value}"


def test_a_message_of_the_library_reaches_the_terminal_with_its_flag(capsys):
    code, _, err = run_main(capsys, "train", "--variant", "pow2", "--steps", "5", "--seq-len", "0")
    assert code == 2
    assert "Error: --seq-len must be at least 1, not 0." in err
    assert not SETTING.search(err)
