"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

from smollm2.errors import UserError, did_you_mean

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
    str, typer.Option("--study", help="Directory of the runs in it.", rich_help_panel="Where")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, for scripts.")]
Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        help="builtin (Python's own sources; the default), a file or folder (.txt .md .jsonl[.gz|"
        ".zst] .parquet), a prepared folder, smollm-corpus, or hub:ORG/NAME[/CONFIG].",
        rich_help_panel="Data",
        show_default=False,
    ),
]
Tokenizer = Annotated[
    str | None,
    typer.Option(
        "--tokenizer",
        help="train:N (byte-level BPE on the training documents; the default, with N the model's "
        "vocabulary), smollm2, hub:ORG/NAME, or a folder with a tokenizer.json.",
        rich_help_panel="Data",
        show_default=False,
    ),
]

TRACKERS = ("tensorboard", "wandb", "trackio")


def known_tracker(name: str | None) -> str | None:
    """`name`, refused if there is no such tracker."""
    if name is not None and name not in TRACKERS:
        raise UserError(
            f"Unknown tracker {name!r}.{did_you_mean(name, TRACKERS)} There are "
            f"{', '.join(TRACKERS)}."
        )
    return name


Track = Annotated[
    str | None,
    typer.Option(
        metavar="TRACKER",
        callback=known_tracker,
        help=f"Show the rows in {TRACKERS[0]}, {TRACKERS[1]} or {TRACKERS[2]} as well.",
        show_default=False,
    ),
]

RESULTS = Path("results")
STUDY = "runs"


def complete_run(context: typer.Context, incomplete: str) -> list[str]:
    """For the shell: the names of runs in the study of the command line so far."""
    folder = Path(context.params.get("results") or RESULTS, context.params.get("study") or STUDY)
    names = sorted(path.parent.name for path in folder.glob("*/run.json"))
    return [name for name in names if name.startswith(incomplete)]


def complete_target(context: typer.Context, incomplete: str) -> list[str]:
    """For the shell: the names of runs, and of variants."""
    return complete_run(context, incomplete) + complete_variant(incomplete)


def complete_variant(incomplete: str) -> list[str]:
    """For the shell: the names of variants."""
    from smollm2.config import VARIANTS

    return [name for name in VARIANTS if name.startswith(incomplete)]


def is_given(context: typer.Context, name: str) -> bool:
    """Whether the user gave that option: in the command, the environment or a file of defaults."""
    source = context.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"


def is_typed(context: typer.Context, name: str) -> bool:
    """Whether the user gave that option in the command itself, for this time."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
