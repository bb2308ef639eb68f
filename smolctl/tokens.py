"""The tokens that a command works on: prepared with a progress bar, or found again for a run."""

import time
from pathlib import Path
from typing import TYPE_CHECKING

from smollm2.errors import UserError

if TYPE_CHECKING:
    from smollm2.data import TokenData
    from smollm2.runs import Run


def prepared(
    source: str,
    tokenizer: str | None,
    default_tokenizer: str,
    *,
    out: Path | None = None,
    max_tokens: int | None = None,
    max_vocab: int | None = None,
) -> "TokenData":
    """The tokens of `source`, from the cache or made now: with a progress bar on a terminal, a line
    before and after elsewhere.

    A prepared folder brings its own tokenizer; elsewhere None stands for `default_tokenizer`. One
    with more than `max_vocab` tokens is refused at once.
    """
    from smolctl.console import count, duration, progress, say, stderr
    from smollm2.data import is_prepared, source_name
    from smollm2.data import prepare as make

    if tokenizer is None and not is_prepared(source):
        tokenizer = default_tokenizer
    with progress("{task.fields[amount]}") as bar:
        task = bar.add_task("preparing", total=None, amount="")
        started: float | None = None  # clock at the first progress; none comes from the cache

        def on_progress(stage: str, done: int, total: int | None) -> None:
            nonlocal started
            if started is None:
                started = time.monotonic()
                if not stderr.is_terminal:
                    say(f"Preparing tokens of {source_name(source)} ...")
            bar.update(task, description=stage, completed=done, total=total, amount=count(done))

        data = make(
            source,
            tokenizer,
            out=out,
            max_tokens=max_tokens,
            max_vocab=max_vocab,
            progress=on_progress,
        )
    if started is not None and not stderr.is_terminal:
        seconds = time.monotonic() - started
        say(f"Prepared {count(len(data.train))} training tokens in {duration(seconds)}.")
    return data


def tokens_of(run: "Run", source: str | None, tokenizer: str | None) -> "TokenData":
    """The tokens a run was trained on: from the cache, else prepared again from `source`. An
    imported run has none of its own, and `source` is whatever text it is to be scored on."""
    from smollm2.data import find_prepared, open_prepared

    wanted = run.protocol.data
    if wanted is None:
        return foreign_tokens(run, source)
    if source is None:
        cached = find_prepared(wanted.fingerprint)
        if cached is not None:
            return open_prepared(cached)
        if wanted.source != "builtin":
            raise UserError(
                f"The tokens of run {run.name!r} are not on this machine any more; give its --data "
                f"({wanted.source}, or the folder prepared from it) again."
            )
        source = "builtin"
    data = prepared(source, tokenizer, str(run.path / "tokenizer.json"))
    if data.fingerprint != wanted.fingerprint:
        raise UserError(
            f"--data {Path(source).name} is not what run {run.name!r} was trained on: its "
            f"fingerprint is {data.fingerprint}, the run's {wanted.fingerprint} ({wanted.source})."
        )
    return data


def foreign_tokens(run: "Run", source: str | None) -> "TokenData":
    """The tokens of a text that a run was not trained on here, made with the run's tokenizer."""
    if source is None:
        raise UserError(
            f"Run {run.name!r} was imported, and on what it was trained is not known here: name "
            "the text to score it on, such as --data mine.jsonl, or have eval score --tasks only."
        )
    data = prepared(
        source, None, str(run.path / "tokenizer.json"), max_vocab=run.protocol.model.vocab_size
    )
    if data.tokenizer_fingerprint != run.tokenizer_fingerprint:
        raise UserError(
            f"{data.source} is prepared with another tokenizer ({data.tokenizer_fingerprint}) than "
            f"that of run {run.name!r} ({run.tokenizer_fingerprint}); give the text itself."
        )
    return data
