"""`smolctl prepare`: token files that any machine can train from."""

import math
from pathlib import Path
from typing import Annotated

import typer

from smolctl.cli.console import print_facts, print_json, say
from smolctl.cli.options import Data, HeldOut, Json, Tokenizer
from smolctl.command_line import command
from smollm2.errors import UserError

MOST_TOKENS = 10**15  # far beyond any corpus

EXAMPLES = """
**Examples**

- `smolctl prepare --data novels.jsonl.gz --tokenizer train:4096 --out tokens/`

- `smolctl prepare --data smollm-corpus --tokenizer smollm2 --max-tokens 50e6 --out tokens/`

- `smolctl prepare --data s3://bucket/text/ --tokenizer smollm2 --shards 64 --out tokens/`

Then, on any machine, without `datasets`:

- `smolctl train --variant pow2 --scale nano --steps 300 --data tokens/`
"""


def prepare(
    out: Annotated[
        Path,
        typer.Option(help="Folder to write; it must not exist, unless it has some of the shards."),
    ],
    tokenizer: Tokenizer = None,
    data: Data = None,
    max_tokens: Annotated[
        float | None,
        typer.Option(
            help="Stop after this many training tokens (default: 100e6 for a hub "
            "corpus, else all). "
            "Validation and test are not limited."
        ),
    ] = None,
    held_out: HeldOut = None,
    shards: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Make so many shards, each of a slice of the corpus. A command that was stopped "
            "goes on with those that are missing, and several may share them.",
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Tokenize a corpus once, into a folder that any machine can train from."""
    from smolctl.studies.tokens import prepared

    if tokenizer is None:
        raise UserError(
            "Name a tokenizer: --tokenizer train:4096 for nano scale, train:49152 "
            "for full size, or "
            "smollm2."
        )
    if max_tokens is not None and not 1 <= max_tokens < math.inf:  # false for nan
        raise UserError(f"--max-tokens must be at least 1 and finite, not {max_tokens:g}.")
    if max_tokens is not None and max_tokens > MOST_TOKENS:
        raise UserError(f"--max-tokens must be at most {MOST_TOKENS:,}, not {max_tokens:g}.")
    limit = None if max_tokens is None else int(max_tokens)
    try:
        made = prepared(
            data or "builtin",
            tokenizer,
            tokenizer,
            out=out,
            max_tokens=limit,
            held_out=held_out,
            shards=shards,
        )
    except KeyboardInterrupt:
        say(stopped(out, shards))
        raise typer.Exit(130) from None
    sizes = {split: len(getattr(made, split)) for split in ("train", "validation", "test")}
    if as_json:
        summary = {"path": str(out), "fingerprint": made.fingerprint, "tokens": sizes}
        print_json(summary)
        return
    print_facts(
        f"Prepared {made.source}",
        [
            *((f"{split} tokens", f"{n:,}") for split, n in sizes.items()),
            ("tokenizer", f"{made.vocab_size:,} tokens"),
            ("fingerprint", made.fingerprint),
            ("folder", str(out)),
        ],
        is_result=False,
    )
    scale = ("--scale", "nano") if made.vocab_size <= 4096 else ()
    words = ("train", "--variant", "pow2", *scale, "--steps", "300", "--data", str(out))
    say(f"Next: {command(*words)}")


def stopped(out: Path, shards: int | None) -> str:
    """What is left of a command that was stopped."""
    from smollm2.data.shards import whole_shards

    if shards is None or not (whole := whole_shards(out)):
        return "Stopped. Nothing was saved."
    return f"Stopped with {whole} of {shards} shards. Repeat the command to make the others."
