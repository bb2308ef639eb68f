"""The tokens that a command works on: prepared now, or found again for a run."""

import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from smolctl.talk import progress, say, warn
from smolctl.units import count, duration
from smollm2.data import TokenData, find_prepared, is_prepared, open_prepared, source_name
from smollm2.data import prepare as make
from smollm2.data.corpora import is_path
from smollm2.data.overlap import documents_also_in
from smollm2.errors import UserError
from smollm2.protocol.resolve import resolve
from smollm2.protocol.run_config import RunConfig
from smollm2.runs.conditions import TEXT_SPLITS
from smollm2.runs.run import Run

if TYPE_CHECKING:
    from smolctl.studies.study_file import Study  # imports torch


def prepared(
    source: str,
    tokenizer: str | None,
    default_tokenizer: str,
    *,
    out: Path | None = None,
    max_tokens: int | None = None,
    max_vocab: int | None = None,
    held_out: float | None = None,
    shards: int | None = None,
) -> TokenData:
    """The tokens of `source`, from the cache or made now, with progress, a message before and
    after, and a warning if a part of the text is not in them.

    A prepared folder brings its own tokenizer; for other sources None means `default_tokenizer`. A
    tokenizer with more than `max_vocab` tokens is refused before the text is read.
    """
    if tokenizer is None and not is_prepared(source):
        tokenizer = default_tokenizer
    started: float | None = None  # time of the first progress; None if the cache has the tokens
    with progress() as show:

        def on_progress(stage: str, done: int, total: int | None) -> None:
            nonlocal started
            if started is None:
                started = time.monotonic()
                say(f"Preparing tokens of {source_name(source)} ...")
            show(stage, done, total)

        data = make(
            source,
            tokenizer,
            out=out,
            max_tokens=max_tokens,
            max_vocab=max_vocab,
            held_out=held_out,
            shards=shards,
            progress=on_progress,
        )
    if started is not None:
        seconds = time.monotonic() - started
        say(f"Prepared {count(len(data.train))} training tokens in {duration(seconds)}.")
    for note in data.notes:
        warn(note)
    return data


def tokens_of(run: Run, source: str | None, tokenizer: str | None) -> TokenData:
    """The tokens a run was trained on: from the cache, or prepared again from `source`. For an
    imported run, `source` is any text to score it on.

    Raises:
        UserError: they are not available, or `source` is another text.
    """
    wanted = run.protocol.data
    if wanted is None:
        return foreign_tokens(run, source)
    if source is None:
        cached = find_prepared(wanted.fingerprint, wanted.tokenizer_fingerprint)
        if cached is not None:
            return open_prepared(cached)
        if wanted.source != "builtin":
            raise UserError(
                f"The tokens of run {run.name!r} are no longer on this machine; give --data PATH "
                f"(it was {wanted.source}, fingerprint {wanted.fingerprint}; the folder prepared "
                "from it will do)."
            )
        source = "builtin"
    default = str(run.path / "tokenizer.json")
    data = prepared(source, tokenizer, default, held_out=held_out_share(run))
    if data.fingerprint != wanted.fingerprint:
        raise UserError(
            f"--data {Path(source).name} is not what run {run.name!r} was trained on: its "
            f"fingerprint is {data.fingerprint}, the run's {wanted.fingerprint} ({wanted.source})."
        )
    return data


def held_out_share(run: Run) -> float | None:
    """The share of its text that was asked to be held out; None in older requests, and for an
    imported run."""
    share: float | None = (run.manifest["request"] or {}).get("held_out")
    return share


def text_to_score(run: Run, source: str | None) -> TokenData:
    """The tokens to score a run on: its own as `tokens_of` finds them, or another text, which is
    said.

    Raises:
        UserError: as `tokens_of` and `require_unseen`.
    """
    own = run.protocol.data
    if own is None or source is None:
        return tokens_of(run, source, None)
    data = tokens_for(run, source, held_out_share(run))
    if data.fingerprint != own.fingerprint:
        require_unseen(run, data)
        say(
            f"{data.source} is not the text that {run.name} was trained on ({own.source}, "
            f"fingerprint {own.fingerprint}): it is scored as another text."
        )
    return data


def require_unseen(run: Run, data: TokenData) -> None:
    """Raise `UserError` if the run was trained on documents that `data` holds out, as far as the
    tokens it was trained on are here; of an imported run nothing is known."""
    own = run.protocol.data
    if own is None or own.fingerprint == data.fingerprint:
        return
    cached = find_prepared(own.fingerprint, own.tokenizer_fingerprint)
    if cached is None:
        warn(
            f"Whether run {run.name} was trained on documents of {data.source} is not checked: the "
            f"tokens it was trained on ({own.source}) are no longer on this machine."
        )
        return
    train = open_prepared(cached).train
    for split in TEXT_SPLITS:
        if seen := documents_also_in(getattr(data, split), train, data.end_of_text):
            raise UserError(
                f"Run {run.name!r} was trained on {seen} of the {data.documents[split]} {split} "
                f"documents of {data.source} (they are in {own.source} too), so a score on them is "
                "none of held-out text; give a text without them."
            )


def trained_on(config: RunConfig, runs: Iterable[Run]) -> Run | None:
    """The first run that was requested with the data, tokenizer and held-out share of `config`, by
    the names that a manifest keeps."""
    asked = config.without_paths()
    wanted = (asked.data, asked.tokenizer, asked.held_out)
    for run in runs:
        made = run.manifest["request"]
        if made and (made["data"], made["tokenizer"], made.get("held_out")) == wanted:
            return run
    return None


def is_gone(source: str) -> bool:
    """Whether `source` is a path that leads nowhere, as one that a card or a kept study file has by
    its base name."""
    return is_path(source) and not Path(source).exists()


def tokens_again(run: Run, source: str | None) -> TokenData:
    """The tokens of a run as `tokens_of` finds them, under the name that the run has for them."""
    data, wanted = tokens_of(run, source, None), run.protocol.data
    data = replace(data, source=wanted.source) if wanted else data
    if source is None:
        say(f"Using the tokens that run {run.name} was trained on: {data.source} is not here.")
    return data


def foreign_tokens(run: Run, source: str | None) -> TokenData:
    """The tokens of any text, made with the tokenizer of an imported run."""
    if source is None:
        raise UserError(
            f"Run {run.name!r} was imported, and its training text is unknown. Name a text to "
            "score it on, such as --data mine.jsonl, or score only tasks with eval --tasks."
        )
    return tokens_for(run, source)


def tokens_for(run: Run, source: str, held_out: float | None = None) -> TokenData:
    """The tokens of any text, made with the tokenizer of a run.

    Raises:
        UserError: `source` cannot be read, or was prepared with another tokenizer.
    """
    data = prepared(
        *(source, None, str(run.path / "tokenizer.json")),
        max_vocab=run.protocol.model.vocab_size,
        held_out=held_out,
    )
    if data.tokenizer_fingerprint != run.tokenizer_fingerprint:
        raise UserError(
            f"{data.source} was prepared with a different tokenizer ({data.tokenizer_fingerprint}) "
            f"from that of run {run.name!r} ({run.tokenizer_fingerprint}); give the text itself."
        )
    return data


def tokens_of_study(study: "Study", before: Run | None, source: str | None) -> TokenData:
    """The tokens that every arm is trained on, with the first arm's tokenizer.

    Args:
        before: a run of the study, made on the same text: if that is no longer where it was, its
            tokens are looked for in the cache and in `source`.

    Raises:
        UserError: they cannot be had, or the tokenizer is too large for an arm.
    """
    first = study.arms[0].config
    if before is not None and (source is not None or is_gone(first.data)):
        return tokens_again(before, source)
    if is_gone(first.data):
        raise UserError(f"There is no file or folder {first.data!r}; give --data PATH.")
    sizes = [resolve(arm.config).model.vocab_size for arm in study.arms]
    default = f"train:{sizes[0]}"
    return prepared(
        first.data, first.tokenizer, default, max_vocab=min(sizes), held_out=first.held_out
    )
