"""The Typer app: the options of `smolctl` itself, above all commands."""

from typing import Annotated

import typer

from smolctl import talk
from smolctl.cli.commands import Commands
from smolctl.cli.startup import keep_freed_memory
from smollm2._version import __version__

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def version(wanted: bool) -> None:
    """Print the version and exit, if it is wanted."""
    if wanted:
        typer.echo(f"smolctl {__version__}")
        raise typer.Exit


@app.callback()
def smolctl(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Train, compare and quantize small language models, with honest error bars."""
    del debug, version  # the entry point and the callback handle them
    direct_talk()
    keep_freed_memory()


def direct_talk() -> None:
    """Show messages and progress on this terminal."""
    from smolctl.cli import console

    talk.use(console)
