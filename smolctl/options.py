"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

Results = Annotated[
    Path, typer.Option("--results", help="Directory of all studies.", rich_help_panel="Where")
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

RESULTS = Path("results")
STUDY = "runs"


def is_given(context: typer.Context, name: str) -> bool:
    """Whether the user gave that option."""
    source = context.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"
