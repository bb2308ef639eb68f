"""The Typer app: one command a module beside this one.

Modules imported here load nothing heavy: torch, pandas and the like are imported inside the
functions that need them, so that `smolctl --help` is immediate.
"""

import os
import signal
import sys
from typing import Annotated

import typer

from smolctl import (
    compare,
    doctor,
    evaluate,
    export,
    generate,
    prepare,
    quantize,
    report,
    runs,
    study,
    train,
    variants,
)
from smolctl.defaults import CommandsWithDefaults
from smollm2._version import __version__
from smollm2.errors import RunError, UserError

# Compiled products that torch and oneDNN keep for shapes seen before, by default a thousand; rows
# of an expert are others at every step, and nano `moe-160m` took 1.4 GB instead of 0.6, no faster.
KEPT_PRODUCTS = {"LRU_CACHE_CAPACITY": "64", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128"}

# glibc's M_MMAP_MAX and M_TRIM_THRESHOLD (bytes): a CPU's training step takes 10 % less time.
MALLOC_OPTIONS = {-4: 0, -1: 2**31 - 1}

app = typer.Typer(
    cls=CommandsWithDefaults,
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
    keep_freed_memory()


def keep_freed_memory() -> None:
    """Have the C allocator keep what is freed, on Linux.

    By default it gives each large tensor back to the system, and the next one is cleared page by
    page. `malloc_trim`, before a run's peak is measured, still gives back what is free.
    """
    import ctypes

    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        for option, value in MALLOC_OPTIONS.items():
            mallopt(option, value)


app.command(epilog=train.EXAMPLES)(train.train)
app.command(epilog=prepare.EXAMPLES)(prepare.prepare)
app.command(epilog=study.EXAMPLES)(study.study)
app.command("eval", epilog=evaluate.EXAMPLES)(evaluate.evaluate)
app.command(epilog=compare.EXAMPLES)(compare.compare)
app.command(epilog=generate.EXAMPLES)(generate.generate)
app.command(epilog=quantize.EXAMPLES)(quantize.quantize)
app.command(epilog=report.EXAMPLES)(report.report)
app.command(epilog=export.EXAMPLES)(export.export)
app.add_typer(runs.app, name="runs")
app.command(epilog=variants.EXAMPLES)(variants.variants)
app.command(epilog=doctor.EXAMPLES)(doctor.doctor)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line. Exit codes: 0 done, 1 it failed, 2 what was asked cannot be done,
    128 + signal when stopped by one."""
    arguments = sys.argv[1:] if arguments is None else arguments
    for name, capacity in KEPT_PRODUCTS.items():  # read when torch is imported
        os.environ.setdefault(name, capacity)
    # Ends like Ctrl-C does, through every `finally`; training installs a gentler handler.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        app(arguments)
    except (UserError, RunError) as error:
        if "--debug" in arguments:
            raise
        typer.echo(f"Error: {error}", err=True)
        for note in getattr(error, "__notes__", ()):
            typer.echo(note, err=True)
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
    finally:
        flush()


def flush() -> None:
    """Write out what stdout holds while it can be said that nobody reads it any more."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        # Python would try again at its end, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
