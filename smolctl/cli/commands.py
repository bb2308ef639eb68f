"""The commands of `smolctl`, each loaded when it is invoked.

`smolctl --help` lists them by their summaries here and loads none. A command's module imports only
what loads in an instant, so that its own help and the shell's completion are immediate as well;
slow imports (torch, pandas, ...) are in the command's function.
"""

import contextlib
import importlib
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import typer
from typer.core import TyperCommand

from smolctl.cli.defaults import CommandsWithDefaults
from smolctl.cli.single_options import SingleOptionsCommand
from smolctl.printable import printable, shortened

USAGE_ERROR: Any = typer.BadParameter.__base__  # its module has moved between versions of typer


# Options that users of lm-evaluation-harness type out of habit.
OF_LM_EVAL = ("--model", "--model_args", "--num_fewshot", "--num-fewshot")
LM_EVAL = (
    "Runs are named as arguments and scored 0-shot; for the rest, write a folder with smolctl "
    "export RUN --to hf and run lm-evaluation-harness on it."
)


@dataclass(frozen=True)
class Entry:
    """A command's location and summary.

    Args:
        target: `MODULE:NAME` of its function, or of its `typer.Typer` if it has commands itself.
        summary: the first paragraph of its help.
    """

    target: str
    summary: str


COMMANDS = {
    "train": Entry(
        "train_command:train", "Train a model and write its run directory, `results/STUDY/RUN`."
    ),
    "prepare": Entry(
        "prepare_command:prepare",
        "Tokenize a corpus once, into a folder that any machine can train from.",
    ),
    "study": Entry(
        "study_command:study",
        "Run a study: train every arm with every seed, interleaved, then evaluate.",
    ),
    "plan": Entry(
        "plan_command:plan_study",
        "Say how many seeds, runs and hours a study takes to find a difference.",
    ),
    "eval": Entry(
        "eval_command:evaluate", "Score finished runs on held-out text and multiple-choice tasks."
    ),
    "compare": Entry(
        "compare_command:compare",
        "Compare arms by final test loss, with confidence intervals over seeds.",
    ),
    "generate": Entry(
        "generate_command:generate", "Continue a text with a trained run or an imported model."
    ),
    "quantize": Entry(
        "quantize_command:quantize",
        "Quantize finished runs to 8 or 4 bits; measure fidelity, size and speed against bf16.",
    ),
    "report": Entry(
        "report_command:report",
        "Write the model card of a study to stdout: the answer, how it was measured, its limits.",
    ),
    "export": Entry(
        "export_command:export",
        "Write a run's weights and tokenizer for transformers or llama.cpp.",
    ),
    "variants": Entry(
        "variants_command:variants",
        "Show architectures: shape, parameters, FLOPs and KV cache per token.",
    ),
    "doctor": Entry(
        "doctor_command:doctor",
        "Show what this machine can do: devices, speed, quantization, packages, disks.",
    ),
    "runs": Entry("runs_command:app", "List runs; show, remove, pack or unpack them."),
}


def load(name: str) -> Any:
    """The command of that name, as Click runs it; examples stand first in its help."""
    module_name, _, attribute = COMMANDS[name].target.partition(":")
    module = importlib.import_module(f"smolctl.cli.{module_name}")
    app = getattr(module, attribute)
    if not isinstance(app, typer.Typer):
        function, app = app, typer.Typer(rich_markup_mode="markdown", add_completion=False)
        app.command()(function)
    infos: list[Any] = [app.registered_callback, *app.registered_commands]
    for info in filter(None, infos):
        info.help = f"{inspect.getdoc(info.callback)}\n{module.EXAMPLES}"
    for info in app.registered_commands:
        info.cls = SingleOptionsCommand
    command: Any = typer.main.get_command(app)
    command.name = name
    return command


class LazyCommands(Mapping[str, Any]):
    """The commands by their names, each loaded when it is first looked up."""

    def __init__(self) -> None:
        self.loaded: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self.loaded:
            self.loaded[name] = load(name)
        return self.loaded[name]

    def __iter__(self) -> Iterator[str]:
        return iter(COMMANDS)

    def __len__(self) -> int:
        return len(COMMANDS)

    def __contains__(self, name: object) -> bool:
        return name in COMMANDS


@contextlib.contextmanager
def printable_errors() -> Iterator[None]:
    """A context manager that makes the messages of typer fit for a terminal: they repeat what was
    typed."""
    try:
        yield
    except USAGE_ERROR as error:
        is_habit = getattr(error, "option_name", None) in OF_LM_EVAL
        if is_habit and error.ctx and error.ctx.info_name == "eval":
            error.message += f". {LM_EVAL}"
            error.possibilities = None
        error.message = shortened(printable(error.message))
        raise


class Commands(CommandsWithDefaults):
    """The group of all commands."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = LazyCommands()  # type: ignore[assignment]  # nobody adds to it

    def make_context(self, *args: Any, **attributes: Any) -> Any:
        with printable_errors():
            return super().make_context(*args, **attributes)

    def invoke(self, ctx: Any) -> Any:
        with printable_errors():
            return super().invoke(ctx)

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        if LISTING in ctx.meta:
            return TyperCommand(cmd_name, callback=None, help=COMMANDS[cmd_name].summary)
        return self.commands[cmd_name]

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """The help, which lists commands without loading them."""
        ctx.meta[LISTING] = True
        super().format_help(ctx, formatter)


LISTING = "smolctl.listing"  # key of a context that only lists commands
