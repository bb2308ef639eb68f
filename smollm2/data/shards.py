"""A text in shards: each is the tokens of one slice of the source, whoever makes it and when.

A folder of shards gets `tokenizer.json` and `plan.json`, then for each slice a folder, such as
`shard-00000`, whole or absent. When all are there, their validation and test tokens are joined, and
`data.json` makes the folder a prepared one.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from tokenizers import Tokenizer

from smollm2.data.byte_account import ByteAccount, dropped_note
from smollm2.data.corpora import document_slices, is_path, source_name
from smollm2.data.data_json import SHARDED, tokens_fingerprint, write_info
from smollm2.data.sharded_tokens import shard_path
from smollm2.data.split_files import ENDS, token_dtype, write_splits
from smollm2.data.splits import (
    HELD_OUT,
    SPLITS,
    Splitter,
    require_held_out,
    require_text,
    scan,
    splitter,
)
from smollm2.data.token_data import is_prepared
from smollm2.data.tokenizer import (
    end_of_text_id,
    load_tokenizer,
    tokenizer_fingerprint,
    train_tokenizer,
)
from smollm2.errors import UserError
from smollm2.files import checksum, make_folder, replace_file, replacing, write_json
from smollm2.parse import read_json

PLAN, SHARD, TOKENIZER = "plan.json", "shard.json", "tokenizer.json"
HELD_OUT_TOKENS = 2**24  # of validation, and of test; 17 million are more than a run scores

Progress = Callable[[str, int, int | None], None]


def write_shards(
    out: Path,
    shards: int,
    source: str,
    identity: str,
    tokenizer: Tokenizer | int,
    max_tokens: int | None,
    held_out: float | None,
    notes: list[str],
    progress: Progress,
) -> None:
    """Make what is missing of a folder of shards; what another process makes is waited for.

    Args:
        identity: see `source_identity`.
        tokenizer: or the size of one to train on the training documents.
        max_tokens, held_out: as in `prepare`. A shard has an equal share of the tokens, rounded up
            to whole documents.
        notes: sentences for the user about the source.

    Raises:
        UserError: the source cannot be cut or is too small, or `out` has something else.
    """
    slices = document_slices(source, shards)
    share = HELD_OUT if held_out is None else held_out
    given = tokenizer if isinstance(tokenizer, int) else tokenizer_fingerprint(tokenizer)
    plan = {
        "format": SHARDED,
        "source": source_name(source),
        "content": hashlib.sha256(identity.encode()).hexdigest()[:16],
        "tokenizer": given,
        "shards": shards,
        "max_tokens": max_tokens,
        "held_out": share,
        "held_out_tokens": HELD_OUT_TOKENS,
    }
    if is_begun(out, plan) and is_prepared(str(out)):
        return
    hashes, texts = scan(source, progress)
    rule, split = splitter(hashes, share)
    with _alone(out):
        if not is_begun(out, plan):
            if isinstance(tokenizer, int):
                progress("train tokenizer", 0, None)
                tokenizer = train_tokenizer(tokenizer, _training(texts(), split))
            replace_file(out / TOKENIZER, tokenizer.to_str(pretty=True))
            write_json(out / PLAN, plan)
    del texts  # it may keep 100 MB of the source
    folder = ShardFolder(out, plan, split, progress)
    for wait in (False, True):  # first what nobody makes, then what the others have not finished
        for number, read in enumerate(slices):
            folder.make(number, read, wait=wait)
    if is_prepared(str(out)):
        return  # another process has finished it
    with _alone(out):
        if not is_prepared(str(out)):
            folder.finish(source, rule, is_share_asked=held_out is not None, notes=notes)
        for lock in out.glob(".*.lock"):  # one who waits for it finds the folder finished
            lock.unlink(missing_ok=True)


def is_begun(out: Path, plan: dict[str, Any]) -> bool:
    """Whether `out` has the plan for its shards.

    Raises:
        UserError: it has another one, or other files.
    """
    if (out / PLAN).is_file():
        found = read_json(out / PLAN)
        if changed := [name for name in plan if found.get(name) != plan[name]]:
            what = "; ".join(f"{k}: {found.get(k)} there, {plan[k]} requested" for k in changed)
            raise UserError(
                f"The shards in {str(out)!r} were begun with other settings ({what}). Repeat the "
                "command that began them, or name a new folder with `out`."
            )
        return True
    if out.is_file() or (out.is_dir() and set(_visible(out)) - {TOKENIZER}):
        raise UserError(f"{str(out)!r} exists already: name a new or an empty folder with `out`.")
    return False


def is_unfinished(source: str) -> bool:
    """Whether `source` is a folder of shards, some of which are missing."""
    try:
        return is_path(source) and (Path(source) / PLAN).is_file() and not is_prepared(source)
    except OSError:  # not a valid file name, such as one too long
        return False


def whole_shards(out: Path) -> int:
    """How many shards of a folder are made."""
    return sum(1 for _ in out.glob(f"shard-*/{SHARD}"))


class ShardFolder:
    """One process's work on a folder of shards, alongside other processes.

    Args:
        plan: what the shards depend on, beside the source.
        split: how a document is split.
    """

    def __init__(
        self, out: Path, plan: dict[str, Any], split: Splitter, progress: Progress
    ) -> None:
        self.out, self.plan, self.split, self.progress = out, plan, split, progress
        self.n_shards = plan["shards"]
        self.tokenizer = load_tokenizer(str(out))
        self.end_of_text = end_of_text_id(self.tokenizer)
        self.account = ByteAccount(self.tokenizer, self.end_of_text)
        self.dtype = token_dtype(len(self.account.sizes))

    def make(self, number: int, read: Callable[[], Iterator[str]], *, wait: bool) -> None:
        """Make a shard if it is not there, and if another process makes it wait for that or leave
        it."""
        path = shard_path(self.out, number)
        if (path / SHARD).is_file():
            return
        try:
            with FileLock(self.out / f".{path.name}.lock", timeout=-1 if wait else 0):
                if not (path / SHARD).is_file():
                    with replacing(path) as made:
                        made.mkdir()
                        self._write(made, number, read)
        except Timeout:
            pass  # another process makes it
        self.progress("shards", number + 1, self.n_shards)

    def _write(self, path: Path, number: int, read: Callable[[], Iterator[str]]) -> None:
        limits = {name: self._share(HELD_OUT_TOKENS, number) for name in SPLITS[1:]}
        if (max_tokens := self.plan["max_tokens"]) is not None:
            limits["train"] = self._share(max_tokens, number)
        before = self.account.dropped, self.account.documents
        files = write_splits(
            *(path, read(), self.split, self.account, self.end_of_text, limits),
            lambda n: self.progress(f"shard {number + 1} of {self.n_shards}", n, None),
            is_whole=True,
        )
        facts = {
            "splits": {name: file.facts() for name, file in files.items()},
            "sha256": files["train"].hash.hexdigest(),
            "dropped_bytes": self.account.dropped - before[0],
            "dropped_documents": self.account.documents - before[1],
            "is_capped": any(files[name].full for name in SPLITS[1:]),
        }
        write_json(path / SHARD, facts)

    def _share(self, total: int, number: int) -> int:
        """The part of a shard, so that all parts make the total."""
        return total * (number + 1) // self.n_shards - total * number // self.n_shards

    def finish(self, source: str, rule: str, *, is_share_asked: bool, notes: list[str]) -> None:
        """Join what is held out, and write data.json. It has no floors: to count them takes
        minutes, and a run that is scored on a part of so much text counts its own.

        Raises:
            UserError: a split has no text, or too few documents for the share that was asked for.
        """
        shards = [shard_path(self.out, number) for number in range(self.n_shards)]
        facts = [read_json(shard / SHARD) for shard in shards]
        splits = {
            name: {
                field: sum(each["splits"][name][field] for each in facts)
                for field in ("tokens", "documents", "bytes")
            }
            for name in SPLITS
        }
        require_text({name: each["tokens"] for name, each in splits.items()}, source_name(source))
        if is_share_asked:
            require_held_out(
                {name: each["documents"] for name, each in splits.items()}, self.plan["held_out"]
            )
        for name in SPLITS[1:]:
            splits[name]["ends"] = self._join(name, shards)
        sizes = [each["splits"]["train"]["tokens"] for each in facts]
        digests = [each["sha256"] for each in facts]
        digests += [checksum(self.out / f"{name}.bin") for name in SPLITS[1:]]
        write_info(
            self.out,
            source,
            self.tokenizer,
            dtype=self.dtype,
            format=SHARDED,
            fingerprint=tokens_fingerprint([bytes.fromhex(each) for each in digests]),
            vocab_size=len(self.account.sizes),
            end_of_text=self.end_of_text,
            max_tokens=self.plan["max_tokens"],
            split_rule=rule,
            held_out=self.plan["held_out"],
            held_out_tokens=HELD_OUT_TOKENS,
            notes=[*notes, *self._notes(facts)],
            splits=splits,
            shards=[
                {"tokens": size, "sha256": each["sha256"]}
                for size, each in zip(sizes, facts, strict=True)
            ],
        )

    def _join(self, name: str, shards: list[Path]) -> str:
        """Write the tokens of a held-out split and the positions of its ends; returns the SHA-256
        of the latter."""
        files = [shard / f"{name}.bin" for shard in shards]
        tokens = np.concatenate([np.fromfile(file, self.dtype) for file in files])
        ends = np.flatnonzero(tokens == self.end_of_text).astype(ENDS).tobytes()
        replace_file(self.out / f"{name}.bin", tokens.tobytes())
        replace_file(self.out / f"{name}.ends", ends)
        return hashlib.sha256(ends).hexdigest()

    def _notes(self, facts: list[dict[str, Any]]) -> Iterator[str]:
        n_bytes, n_documents = (
            sum(each[f"dropped_{what}"] for each in facts) for what in ("bytes", "documents")
        )
        if note := dropped_note(n_bytes, n_documents):
            yield note
        if n_capped := sum(each["is_capped"] for each in facts):
            yield (
                f"Validation and test are capped at {HELD_OUT_TOKENS:,} tokens each, in equal "
                f"shares: in {n_capped:,} of {self.n_shards:,} shards held-out documents beyond "
                "these are in no split."
            )


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """A context manager that keeps other processes out of what concerns the whole folder."""
    make_folder(out)
    with FileLock(out / ".folder.lock"):
        yield


def _training(texts: Iterable[str], split: Splitter) -> Iterator[str]:
    return (part for text in texts for name, part in split(text) if name == "train")


def _visible(folder: Path) -> list[str]:
    return [entry.name for entry in folder.iterdir() if not entry.name.startswith(".")]
