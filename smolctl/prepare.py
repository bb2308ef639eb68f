"""`smolctl prepare`: token files that another machine trains from."""

import math
from pathlib import Path
from typing import Annotated

import typer

from smolctl.options import Data, Json, Tokenizer
from smollm2.errors import UserError

EXAMPLES = """
**Examples**

- `smolctl prepare --data novels.jsonl.gz --tokenizer train:4096 --out tokens/`

- `smolctl prepare --data smollm-corpus --tokenizer smollm2 --max-tokens 50e6 --out tokens/`

Then, on any machine, without `datasets`:

- `smolctl train --variant pow2 --scale nano --steps 300 --data tokens/`
"""


def prepare(
    out: Annotated[Path, typer.Option(help="Folder to write; must not exist.")],
    tokenizer: Tokenizer = None,
    data: Data = None,
    max_tokens: Annotated[
        float | None,
        typer.Option(
            help="Stop at this many training tokens; for a hub corpus default 100e6. Validation "
            "and test have no bound of their own."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Tokenize a corpus once into a folder that another machine can train from."""
    import json
    import sys

    from smolctl.console import facts, say
    from smolctl.tokens import prepared

    if tokenizer is None:
        raise UserError(
            "Say which tokenizer: --tokenizer train:4096 for the nano scale, train:49152 for the "
            "full one, or smollm2."
        )
    if max_tokens is not None and not 1 <= max_tokens < math.inf:  # false for nan
        raise UserError(f"--max-tokens must be at least 1 and finite, not {max_tokens:g}.")
    limit = None if max_tokens is None else int(max_tokens)
    try:
        made = prepared(data or "builtin", tokenizer, tokenizer, out=out, max_tokens=limit)
    except KeyboardInterrupt:
        say("Stopped. Nothing is kept of it.")
        raise typer.Exit(130) from None
    sizes = {split: len(getattr(made, split)) for split in ("train", "validation", "test")}
    if as_json:
        summary = {"path": str(out), "fingerprint": made.fingerprint, "tokens": sizes}
        json.dump(summary, sys.stdout)
        sys.stdout.write("\n")
        return
    facts(
        f"{made.source} is prepared",
        [
            *((f"{split} tokens", f"{n:,}") for split, n in sizes.items()),
            ("tokenizer", f"{made.vocab_size:,} tokens"),
            ("fingerprint", made.fingerprint),
            ("folder", str(out)),
        ],
    )
    scale = " --scale nano" if made.vocab_size <= 4096 else ""
    say(f"Next: smolctl train --variant pow2{scale} --steps 300 --data {out}")
