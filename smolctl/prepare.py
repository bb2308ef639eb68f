"""`smolctl prepare`, and the preparing of tokens that other commands do on the way."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from smolctl.options import Data, Json, Tokenizer
from smollm2.errors import UserError

if TYPE_CHECKING:
    from smollm2.data import TokenData
    from smollm2.runs import Run

EXAMPLES = """
**Examples**

- `smolctl prepare --data novels.jsonl.gz --tokenizer train:4096 --out tokens/`

- `smolctl prepare --data smollm-corpus --tokenizer smollm2 --max-tokens 50e6 --out tokens/`

Then, on any machine, without `datasets`: `smolctl train --variant pow2 --steps 300 --data tokens/`
"""


def prepare(
    out: Annotated[Path, typer.Option(help="Folder to write; must not exist.")],
    tokenizer: Tokenizer = None,
    data: Data = None,
    max_tokens: Annotated[
        float | None,
        typer.Option(help="Stop at this many training tokens; for a hub corpus default 100e6."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Tokenize a corpus once into a folder that another machine can train from."""
    import json
    import sys

    from smolctl.console import facts, say

    if tokenizer is None:
        raise UserError(
            "Say which tokenizer: --tokenizer train:4096 for the nano scale, train:49152 for the "
            "full one, or smollm2."
        )
    limit = None if max_tokens is None else int(max_tokens)
    made = prepared(data or "builtin", tokenizer, tokenizer, out=out, max_tokens=limit)
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
    say(f"Next: smolctl train --variant pow2 --scale nano --steps 300 --data {out}")


def prepared(
    source: str,
    tokenizer: str | None,
    default_tokenizer: str,
    *,
    out: Path | None = None,
    max_tokens: int | None = None,
) -> "TokenData":
    """The tokens of `source`, from the cache or made now with a progress bar.

    A prepared folder brings its own tokenizer; elsewhere None stands for `default_tokenizer`.
    """
    from smolctl.console import count, progress
    from smollm2.data import prepare as make

    if tokenizer is None and not (Path(source) / "data.json").exists():
        tokenizer = default_tokenizer
    with progress("{task.fields[amount]}") as bar:
        task = bar.add_task("preparing", total=None, amount="")

        def on_progress(stage: str, done: int, total: int | None) -> None:
            bar.update(task, description=stage, completed=done, total=total, amount=count(done))

        return make(source, tokenizer, out=out, max_tokens=max_tokens, progress=on_progress)


def tokens_of(run: "Run", source: str | None, tokenizer: str | None) -> "TokenData":
    """The tokens a run was trained on: from the cache, else prepared again from `source`."""
    from smollm2.data import find_prepared, open_prepared

    wanted = run.protocol.data
    assert wanted is not None
    if source is None:
        cached = find_prepared(wanted.fingerprint)
        if cached is not None:
            return open_prepared(cached)
        if wanted.source != "builtin":
            raise UserError(
                f"The tokens of run {run.name!r} are no longer in the cache; give its --data "
                f"({wanted.source}) again."
            )
        source = "builtin"
    data = prepared(source, tokenizer, str(run.path / "tokenizer.json"))
    if data.fingerprint != wanted.fingerprint:
        raise UserError(
            f"--data {Path(source).name} is not what run {run.name!r} was trained on: its "
            f"fingerprint is {data.fingerprint}, the run's {wanted.fingerprint} ({wanted.source})."
        )
    return data
