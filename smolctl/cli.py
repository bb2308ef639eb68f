"""The Typer app: one command a module beside this one.

Modules imported here load nothing heavy: torch, pandas and the like are imported inside the
functions that need them, so that `smolctl --help` is immediate.
"""

import signal
import sys
from typing import Annotated

import typer

from smolctl import compare, evaluate, export, generate, prepare, quantize, report, study, train
from smollm2._version import __version__
from smollm2.errors import RunError, UserError

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"smolctl {__version__}")
        raise typer.Exit


@app.callback()
def smolctl(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Train, compare and quantize small language models, with honest error bars."""
    del version  # its callback has answered; `debug` is read in `main`, where errors end up


app.command(epilog=train.EXAMPLES)(train.train)
app.command(epilog=prepare.EXAMPLES)(prepare.prepare)
app.command(epilog=study.EXAMPLES)(study.study)
app.command("eval", epilog=evaluate.EXAMPLES)(evaluate.evaluate)
app.command(epilog=compare.EXAMPLES)(compare.compare)
app.command(epilog=generate.EXAMPLES)(generate.generate)
app.command(epilog=quantize.EXAMPLES)(quantize.quantize)
app.command(epilog=report.EXAMPLES)(report.report)
app.command(epilog=export.EXAMPLES)(export.export)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line. Exit codes: 0 done, 1 it failed, 2 what was asked cannot be done,
    128 + signal when stopped by one."""
    arguments = sys.argv[1:] if arguments is None else arguments
    # Ends like Ctrl-C does, through every `finally`; training installs a gentler handler.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        app(arguments)
    except (UserError, RunError) as error:
        if "--debug" in arguments:
            raise
        typer.echo(f"Error: {error}", err=True)
        sys.exit(2 if isinstance(error, UserError) else 1)
    except Exception as error:
        if "--debug" in arguments:
            raise
        typer.echo(
            f"Error: smolctl failed unexpectedly ({type(error).__name__}: {error}). "
            "Run again with `smolctl --debug ...` and report what it prints.",
            err=True,
        )
        sys.exit(1)
