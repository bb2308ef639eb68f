"""From documents to token files: split, encode, write once, then open read-only."""

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from filelock import FileLock
from tokenizers import Tokenizer

from smollm2.data.byte_account import ByteAccount, token_bytes
from smollm2.data.corpora import corpus_kind, not_read, source_identity, source_name
from smollm2.data.data_json import FORMAT, tokens_fingerprint, write_info
from smollm2.data.ngram import count_floors
from smollm2.data.shards import is_unfinished, write_shards
from smollm2.data.split_files import token_dtype, write_splits
from smollm2.data.splits import (
    HELD_OUT,
    require_held_out,
    require_share,
    require_text,
    scan,
    splitter,
)
from smollm2.data.token_data import TokenData, is_prepared, open_prepared, pointer_to
from smollm2.data.tokenizer import (
    end_of_text_id,
    load_tokenizer,
    parse_train_spec,
    require_vocab,
    tokenizer_fingerprint,
    train_tokenizer,
)
from smollm2.errors import RunError, UserError
from smollm2.files import FULL, cache_dir, make_folder, replace_file, replacing
from smollm2.leftovers import clear_leftovers

HUB_TOKENS = 100_000_000  # of a hub source, unless max_tokens says otherwise
MOST_SHARDS = 100_000  # whose names have five digits

Progress = Callable[[str, int, int | None], None]


def prepare(
    source: str,
    tokenizer: str | None,
    *,
    out: Path | None = None,
    max_tokens: int | None = None,
    max_vocab: int | None = None,
    held_out: float | None = None,
    shards: int | None = None,
    progress: Progress | None = None,
) -> TokenData:
    """Token files of `source`, written to `out` or, by default, kept in the cache.

    Args:
        source: see `documents`; or a folder prepared before, which is opened as it is.
        tokenizer: see `load_tokenizer`, or `train:N`; None only for a prepared folder.
        out: a folder that does not exist or is empty.
        max_tokens: the train split stops at this many, and reading with it; validation and test
            have no bound of their own. 100 million for the hub, else no limit.
        max_vocab: the model's vocabulary; a larger tokenizer is refused before the source is
            read. A folder prepared before has its tokenizer; `ResolvedConfig.on` checks
            that.
        held_out: the share of the documents for validation, and again for test, at most 0.4; None
            is 0.05. A folder prepared before has its own, and another is refused.
        shards: make the tokens in so many shards of `out`, each of a slice of the source. Several
            processes may be asked for the same at once, and one that was killed may be asked
            again: what is whole stays. See `write_shards`.
        progress: called with what is being done, how much of it is done and the total if known:
            `"scan"` (documents), then `"train tokenizer"`, `"tokenize"` (tokens for training) and
            `"count n-grams"` (tokens for the floors); with shards, in place of these two,
            `"shards"` and `"shard 1 of 9"` (its tokens for training).

    Raises:
        UserError: the source, the tokenizer or `out` cannot be used; or a share that was asked for
            leaves fewer than two documents to a split.
        RunError: the disk is full.
    """
    if held_out is not None:
        require_share(held_out)
    if is_prepared(source):
        return _open_as_asked(Path(source), tokenizer, held_out)
    if is_unfinished(source):
        raise UserError(
            f"Not all shards of {source_name(source)!r} are made: repeat the command that began it."
        )
    if tokenizer is None:
        raise UserError(
            f"{source_name(source)!r} is not a prepared folder: name a tokenizer for it."
        )
    if shards is not None and (out is None or not 1 <= shards <= MOST_SHARDS):
        raise UserError(
            f"`shards` takes 1 to {MOST_SHARDS:,}, and needs `out`, a folder to make them in.",
            field="shards",
        )
    if max_tokens is None and shards is None and corpus_kind(source).is_unbounded:
        max_tokens = HUB_TOKENS
    if max_tokens is not None and max_tokens < 1:
        raise UserError(f"max_tokens is {max_tokens}: expected at least 1 token for training.")
    try:
        identity, skipped = source_identity(source), not_read(source)
    except OSError as error:
        raise UserError(f"Cannot read {source_name(source)!r}: {error.strerror}.") from error
    vocab_size = parse_train_spec(tokenizer)
    made_with = load_tokenizer(tokenizer) if vocab_size is None else vocab_size
    if max_vocab is not None:
        n_tokens = made_with if isinstance(made_with, int) else len(token_bytes(made_with))
        require_vocab(n_tokens, max_vocab)
    notes = [skipped] if skipped else []
    write = partial(_write, source, made_with, max_tokens, held_out, notes, progress or _silent)
    try:
        if out is not None and shards is not None:
            asked = (source, identity, made_with, max_tokens, held_out, notes)
            write_shards(out, shards, *asked, progress or _silent)
            return open_prepared(out)
        if out is not None:
            return _written_to(out, write)
        tokenizer_key = (
            made_with if isinstance(made_with, int) else tokenizer_fingerprint(made_with)
        )
        shares = [] if held_out in (None, HELD_OUT) else [{"held_out": held_out}]
        key = json.dumps([FORMAT, identity, tokenizer_key, max_tokens, *notes, *shares])
        name = f"{_file_name(source)}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
        data = _cached(name, write)
        if held_out is not None:  # the usual share may be in the cache without having been asked
            require_held_out(data.documents, held_out)
        return data
    except OSError as error:
        if error.errno in FULL:
            raise RunError("The disk is full: free some space or name another `out`.") from error
        raise UserError(
            f"Cannot write to {str(out or cache_dir())!r} ({error.strerror}): name a folder you "
            "can write to with `out`, or with SMOLCTL_CACHE for the cache."
        ) from error


# Folders: complete or absent


def _open_as_asked(path: Path, tokenizer: str | None, held_out: float | None) -> TokenData:
    """Open a folder outside the cache and remember its path."""
    data = open_prepared(path)
    if held_out not in (None, data.held_out):
        raise UserError(
            f"{path.resolve().name!r} was prepared with the share {data.held_out:g} of its "
            f"documents held out, not {held_out:g}: omit `held_out`, or name the source that the "
            "folder was prepared from.",
            field="held_out",
        )
    if tokenizer is not None:
        _require_tokenizer(data, tokenizer)
    pointer = pointer_to(data.fingerprint, data.tokenizer_fingerprint)
    # Only `find_prepared` misses it, and the cache may be read-only.
    with contextlib.suppress(OSError):
        make_folder(pointer.parent)
        replace_file(pointer, os.fsencode(path.resolve()))
    return data


def _require_tokenizer(data: TokenData, tokenizer: str) -> None:
    """Raise `UserError` unless `tokenizer` is known to be the one that `data` was made with.

    This never uses the network: the folder contains all that training needs.
    """
    name, asked = data.path.resolve().name, ""
    if parse_train_spec(tokenizer) is None:
        try:
            asked = tokenizer_fingerprint(load_tokenizer(tokenizer, fetch=False))
        except UserError as error:
            raise UserError(
                f"{name!r} brings its own tokenizer, which cannot be compared with "
                f"{Path(tokenizer).name!r}: omit the tokenizer. {error}"
            ) from error
    if asked != data.tokenizer_fingerprint:
        raise UserError(
            f"{name!r} was prepared with tokenizer {data.tokenizer_fingerprint}, not with "
            f"{Path(tokenizer).name!r}: omit the tokenizer, or name the source that the "
            "folder was prepared from."
        )


def _written_to(out: Path, write: Callable[[Path], None]) -> TokenData:
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{str(out)!r} exists already: name a new or an empty folder with `out`.")
    make_folder(out.parent)
    with replacing(out) as folder:
        folder.mkdir()
        write(folder)
    return open_prepared(out)


def _cached(name: str, write: Callable[[Path], None]) -> TokenData:
    folder = cache_dir() / "data"
    if is_prepared(str(folder / name)):  # without a lock, since the cache may be read-only
        with contextlib.suppress(UserError):  # it is damaged
            return open_prepared(folder / name)
    make_folder(folder)
    clear_leftovers(folder)
    with FileLock(folder / f"{name}.lock"):
        try:
            return open_prepared(folder / name)
        except UserError:  # not there yet, or damaged
            shutil.rmtree(folder / name, ignore_errors=True)
        with replacing(folder / name) as made:
            made.mkdir()
            write(made)
        return open_prepared(folder / name)


def _file_name(source: str) -> str:
    name = source_name(source).removeprefix("hub:")
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in name).strip(".")[:80] or "data"


def _silent(stage: str, done: int, total: int | None) -> None:
    """Ignore progress."""


def _write(
    source: str,
    tokenizer: Tokenizer | int,
    max_tokens: int | None,
    held_out: float | None,
    notes: list[str],
    progress: Progress,
    path: Path,
) -> None:
    """Everything a prepared folder holds, into the empty folder `path`.

    `tokenizer` may be a vocabulary size: then one is trained on the training documents.
    """
    hashes, texts = scan(source, progress)
    share = HELD_OUT if held_out is None else held_out
    rule, split = splitter(hashes, share)
    if isinstance(tokenizer, int):
        progress("train tokenizer", 0, None)
        parts = (part for text in texts() for part in split(text))
        tokenizer = train_tokenizer(tokenizer, (text for name, text in parts if name == "train"))
    end_of_text = end_of_text_id(tokenizer)
    account = ByteAccount(tokenizer, end_of_text)
    files = write_splits(
        *(path, texts(), split, account, end_of_text),
        {"train": max_tokens},
        lambda n_tokens: progress("tokenize", n_tokens, max_tokens),
    )
    require_text({name: file.tokens for name, file in files.items()}, source_name(source))
    if held_out is not None:
        require_held_out({name: file.documents for name, file in files.items()}, held_out)
    if note := account.note():
        notes = [*notes, note]
    vocab_size = len(account.sizes)
    dtype = token_dtype(vocab_size)
    train, test = (np.memmap(path / f"{name}.bin", dtype, mode="r") for name in ("train", "test"))
    floors = count_floors(train, test, vocab_size, partial(progress, "count n-grams"))
    content = tokenizer.to_str(pretty=True)  # `save` takes no path that is not UTF-8
    (path / "tokenizer.json").write_text(content, encoding="utf-8")
    write_info(
        path,
        source,
        tokenizer,
        dtype=dtype,
        fingerprint=tokens_fingerprint([file.hash.digest() for file in files.values()]),
        vocab_size=vocab_size,
        end_of_text=end_of_text,
        max_tokens=max_tokens,
        split_rule=rule,
        held_out=share,
        notes=notes,
        splits={name: file.facts() for name, file in files.items()},
        floors=[dataclasses.asdict(each) for each in floors],
    )
