"""Options that several commands share."""

from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from smolctl.command_line import RESULTS, STUDY
from smolctl.studies.targets import studies_in
from smolctl.studies.trackers import TRACKERS, find_tracker
from smolctl.talk import say
from smollm2.errors import UserError
from smollm2.model.config import VARIANTS
from smollm2.runs.packed import is_packed, packed_runs


def nats_per_token(text: str) -> float:
    """A difference of the loss, as it is typed."""
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is not a number of nats/token, such as 0.01, which is 1 % of perplexity."
        ) from None


Results = Annotated[
    Path,
    typer.Option(
        "--results",
        envvar="SMOLCTL_RESULTS",
        help="Directory of all studies.",
        rich_help_panel="Where",
    ),
]
Study = Annotated[
    str,
    typer.Option(
        "--study", help="Study of the runs: a directory in --results.", rich_help_panel="Where"
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, for scripts.")]
Section = Annotated[
    list[str] | None,
    typer.Option(
        "--section",
        metavar="NAME",
        help="Show only this section, e.g. quality, speed or tasks; may be repeated.",
        show_default=False,
    ),
]
Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        help="Text: builtin (Python's own sources; the default), a file or folder (.txt .md "
        ".jsonl[.gz|.zst] .parquet), a prepared folder, smollm-corpus, hub:ORG/NAME[/CONFIG], or "
        "an address such as s3://BUCKET/NAME.",
        show_default=False,
    ),
]
License = Annotated[
    str | None,
    typer.Option(
        "--license",
        help="License of the weights, for the card, as the hub names it, e.g. apache-2.0 (default: "
        "that in the study's file).",
        show_default=False,
    ),
]
TextOfRun = Annotated[
    str | None,
    typer.Option(
        "--data",
        help="Text of the runs, as in train; needed for an imported model, or if tokens are no "
        "longer cached.",
        rich_help_panel="Data",
        show_default=False,
    ),
]
Tokenizer = Annotated[
    str | None,
    typer.Option(
        "--tokenizer",
        help="train:N (byte-level BPE with N tokens, trained on the training documents; the "
        "default, with the model's vocabulary), smollm2, hub:ORG/NAME, or a folder with a "
        "tokenizer.json.",
        rich_help_panel="Data",
        show_default=False,
    ),
]

HeldOut = Annotated[
    float | None,
    typer.Option(
        "--held-out",
        metavar="SHARE",
        help="Share of the documents for validation, and again for test, at most 0.4 (default: "
        "0.05).",
        rich_help_panel="Data",
        show_default=False,
    ),
]


def known_tracker(name: str | None) -> str | None:
    """`name`; `UserError` if there is no such tracker."""
    if name is not None:
        find_tracker(name)
    return name


Track = Annotated[
    str | None,
    typer.Option(
        metavar="TRACKER",
        callback=known_tracker,
        help=f"Also log to a tracker: {', '.join(TRACKERS)}.",
        show_default=False,
    ),
]


def complete_run(context: typer.Context, incomplete: str) -> list[str]:
    """Shell completion: the runs of the study that has been typed."""
    folder = Path(context.params.get("results") or RESULTS, context.params.get("study") or STUDY)
    names = {path.parent.name for path in folder.glob("*/run.json")}
    with suppress(UserError):  # the command itself reports a damaged pack
        names |= set(packed_runs(folder)) if is_packed(folder) else set()
    return [name for name in sorted(names) if name.startswith(incomplete)]


def complete_study(context: typer.Context, incomplete: str) -> list[str]:
    """Shell completion: the names of studies."""
    results = Path(context.params.get("results") or RESULTS)
    return [name for name in studies_in(results) if name.startswith(incomplete)]


def complete_target(context: typer.Context, incomplete: str) -> list[str]:
    """Shell completion: the names of runs and variants."""
    return complete_run(context, incomplete) + complete_variant(incomplete)


def complete_variant(incomplete: str) -> list[str]:
    """Shell completion: the names of variants."""
    return [name for name in VARIANTS if name.startswith(incomplete)]


def is_given(context: typer.Context, name: str) -> bool:
    """Whether the user set the option: on the command line, in the environment or in a file."""
    source = context.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"


def is_typed(context: typer.Context, name: str) -> bool:
    """Whether the user set the option on the command line."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def take_older(context: typer.Context, older: str, name: str) -> None:
    """Give the option `name` the value of its older name, if the user set that.

    Raises:
        UserError: both are typed, or both are in the file of defaults.
    """
    source = context.get_parameter_source(older)
    if source is None or not is_given(context, older):
        return
    names = (older, name)
    if is_typed(context, older):
        names = (f"--{older.replace('_', '-')}", f"--{name.replace('_', '-')}")
    if source is context.get_parameter_source(name):
        raise UserError(f"{names[0]} is the older name of {names[1]}: give only {names[1]}.")
    say(f"{names[0]} is now called {names[1]}.")
    if not is_typed(context, name):
        context.params[name] = context.params[older]
        context.set_parameter_source(name, source)
