"""Byte-level tokenizers: loaded, or trained on the corpus itself."""

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from smollm2.data.byte_account import PROBE
from smollm2.data.encode import PIECE_CHARACTERS
from smollm2.data.hub import require_on_hub
from smollm2.data.panics import no_panic, no_words
from smollm2.errors import UserError, did_you_mean, reason

END_OF_TEXT = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>")
ALIASES = {"smollm2": "hub:HuggingFaceTB/SmolLM2-135M"}
SMALLEST_VOCAB = 300  # 256 bytes, the end of text and a few merges
LARGEST_VOCAB = 1_000_000  # several times the largest vocabulary of a model
HIGHEST_ID = 2**24
LARGEST_FILE = 128 * 2**20  # bytes; several times the largest tokenizer.json of a model
SAMPLE_BYTES = 32 * 2**20
LONGEST_WORD = PIECE_CHARACTERS  # of the sample: longer tokens are never used, and take hours
RUNS = re.compile(r"[^\W\d_]+|(?:[^\w\s]|_)+|\s+")  # letters, symbols, whitespace
SAMPLE_BYTES_PER_DOCUMENT = 256 * 2**10  # so that a few long books do not decide the vocabulary


@dataclass(frozen=True)
class Bounds:
    """The tokens that begin and end a text of a model.

    Args:
        begin: precedes a text without a prompt; None if nothing does.
        ends: any of them ends a text; may be empty.
        pad: fills up shorter texts of a batch; None if nothing is known.
    """

    begin: int | None
    ends: tuple[int, ...]
    pad: int | None = None


def load_tokenizer(spec: str, *, fetch: bool = True) -> Tokenizer:
    """The tokenizer of a folder, of a `tokenizer.json`, or of `smollm2` or `hub:ORG/NAME`.

    Text is encoded literally: a document that spells out `<|endoftext|>` gets the tokens of those
    characters, never the special token.

    Args:
        fetch: whether to fetch a missing tokenizer from the hub.

    Raises:
        UserError: it is missing, damaged or cannot be fetched.
    """
    spec = ALIASES.get(spec, spec)
    path = _from_hub(spec, fetch) if spec.startswith("hub:") else _on_disk(spec)
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise ValueError(f"it has more than {LARGEST_FILE // 2**20} MiB")
        with no_words(), no_panic():
            tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
            _require_ids(tokenizer)
            _try_out(_of_plain_text(tokenizer))
    except Exception as error:  # `tokenizers` raises plain Exception for a broken file
        raise UserError(
            f"The tokenizer {Path(spec).name!r} is damaged ({reason(error)}): expected a "
            "tokenizer.json of the `tokenizers` library. Fetch it again, or use `train:4096`."
        ) from error
    return tokenizer


def encode_text(tokenizer: Tokenizer, text: str, *, with_special: bool = False) -> list[int]:
    """The tokens of a text, without those that a template adds.

    Args:
        with_special: whether a special token that the text spells out gets that token, as in
            transformers, and not the tokens of its characters.

    Raises:
        UserError: the tokenizer has no tokens for it.
    """
    tokenizer.encode_special_tokens = not with_special
    try:
        with no_panic():
            return tokenizer.encode(text, add_special_tokens=False).ids
    except Exception as error:  # `tokenizers` raises plain Exception
        raise UserError(
            f"The tokenizer cannot encode {text[:40]!r} ({reason(error)}): use another tokenizer."
        ) from error
    finally:
        tokenizer.encode_special_tokens = True


def special_ids(tokenizer: Tokenizer, texts: Collection[str]) -> list[int]:
    """The special tokens among `texts`."""
    return [
        number
        for number, token in tokenizer.get_added_tokens_decoder().items()
        if token.special and token.content in texts
    ]


def parse_train_spec(spec: str) -> int | None:
    """The `N` of `train:N`, or None if `spec` names a tokenizer to load.

    Raises:
        UserError: N is not a whole number of at least 300 and at most a million.
    """
    if not spec.startswith("train:"):
        return None
    number = spec.removeprefix("train:")
    is_short = number.isdecimal() and len(number) <= len(str(LARGEST_VOCAB))
    if not (is_short and SMALLEST_VOCAB <= int(number) <= LARGEST_VOCAB):
        raise UserError(
            f"{spec[:40]!r} names no vocabulary size: expected train:N with N a whole number of at "
            f"least {SMALLEST_VOCAB} (256 bytes and some merges) and at most {LARGEST_VOCAB:,}, "
            "for example train:4096."
        )
    return int(number)


def train_tokenizer(vocab_size: int, texts: Iterable[str]) -> Tokenizer:
    """A byte-level BPE like SmolLM2's, the same for the same `texts` on any machine.

    Each text gives at most its first 256 KB, and no more is read once 32 MB are together. Token 0
    is `<|endoftext|>`. Texts with too few repeated pairs give fewer than `vocab_size` tokens.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT[0]],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_sample(texts), trainer)
    return _of_plain_text(tokenizer)


def end_of_text_id(tokenizer: Tokenizer) -> int:
    """The id of the token that ends a document."""
    for token in END_OF_TEXT:
        if (number := tokenizer.token_to_id(token)) is not None:
            return number
    raise UserError(
        "The tokenizer has no token that ends a document: expected one of "
        f"{', '.join(END_OF_TEXT)}. Use `smollm2` or `train:4096`."
    )


def document_bounds(tokenizer: Tokenizer) -> Bounds:
    """The bounds for a model trained here: the end of a document also begins the next one.

    Raises:
        UserError: as `end_of_text_id`.
    """
    end = end_of_text_id(tokenizer)
    return Bounds(end, (end,))


def require_vocab(n_tokens: int, vocab_size: int) -> None:
    """Raise `UserError` if `n_tokens` tokens are more than a model with `vocab_size` embeds."""
    if n_tokens > vocab_size:
        raise UserError(
            f"The tokenizer has {n_tokens} tokens, but the model only {vocab_size}; use "
            f"`tokenizer=train:{vocab_size}`, or `vocab_size={n_tokens}`.",
            field="tokenizer",
        )


def tokenizer_fingerprint(tokenizer: Tokenizer) -> str:
    """16 hex digits of SHA-256 over the tokenizer's JSON, whatever its formatting."""
    return _fingerprint(tokenizer.to_str())


@lru_cache(maxsize=1)  # a folder is opened right after it was prepared
def _fingerprint(layout: str) -> str:
    content = json.loads(layout, object_hook=_without_defaults)
    canonical = json.dumps(content, sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def _on_disk(spec: str) -> Path:
    path = Path(spec)
    if path.is_dir():
        path = path / "tokenizer.json"
    if not path.is_file():
        raise UserError(
            f"There is no tokenizer {spec!r}.{did_you_mean(spec, ['smollm2', 'train:4096'])} "
            "Expected a folder with a tokenizer.json, the file itself, `smollm2`, hub:ORG/NAME, or "
            "train:N to train one on the corpus."
        )
    return path


def _from_hub(spec: str, fetch: bool) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    repo, instead = spec.removeprefix("hub:"), "use `train:4096` or a local tokenizer.json"
    if repo.count("/") != 1 or not all(repo.split("/")):
        raise UserError(f"{spec!r} names no tokenizer: expected hub:ORG/NAME; or {instead}.")
    try:
        return Path(hf_hub_download(repo, "tokenizer.json", local_files_only=True))
    except Exception as error:  # not fetched before, or a name that the hub does not allow
        if not fetch:
            raise UserError(f"The tokenizer of {repo!r} is not on this machine.") from error
        require_on_hub(repo, "model", instead)
    try:
        return Path(hf_hub_download(repo, "tokenizer.json"))
    except EntryNotFoundError as error:
        raise UserError(f"The model {repo!r} has no tokenizer.json; {instead}.") from error
    except Exception as error:  # the class depends on the HTTP library of the hub's client
        raise UserError(
            f"Fetching the tokenizer of {repo!r} failed ({error}); {instead}."
        ) from error


def _require_ids(tokenizer: Tokenizer) -> None:
    """Raise `ValueError` for a token number up to which `tokenizers` would count for minutes."""
    highest = max(tokenizer.get_vocab().values(), default=0)
    if highest > HIGHEST_ID:
        raise ValueError(f"a token has the number {highest:,}, more than {HIGHEST_ID:,}")


def _try_out(tokenizer: Tokenizer) -> None:
    """Use the tokenizer once: some of what is wrong in a file is only noticed then."""
    try:
        tokenizer.decode(tokenizer.encode(PROBE, add_special_tokens=False).ids)
    except Exception:
        return  # it has no token for a character of the probe, and may have all of a user's text


def _of_plain_text(tokenizer: Tokenizer) -> Tokenizer:
    # These settings are left over from the model's last use; none affects the text.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    if getattr(tokenizer.model, "dropout", None):  # of merges: the tokens would be random
        tokenizer.model.dropout = None
    return tokenizer


def _sample(texts: Iterable[str]) -> Iterator[str]:
    left = SAMPLE_BYTES
    for text in texts:
        data = text.encode()[: min(left, SAMPLE_BYTES_PER_DOCUMENT)]
        yield from _without_long_words(data.decode(errors="ignore"))
        left -= len(data)
        if left <= 0:
            return


def _without_long_words(text: str) -> Iterator[str]:
    """`text` in as many parts as it takes to cut words that are longer than `LONGEST_WORD`.

    The time of training grows with the square of a word's length.
    """
    start = 0
    if _may_have_long_words(text):
        for run in RUNS.finditer(text):
            for end in range(run.start() + LONGEST_WORD, run.end(), LONGEST_WORD):
                yield text[start:end]
                start = end
    yield text[start:]


def _may_have_long_words(text: str) -> bool:
    """Whether a stretch of half the length is without whitespace between two words, as is one in
    each word that is too long."""
    size = LONGEST_WORD // 2
    starts = range(0, len(text) - size + 1, size)
    return any(len(text[start : start + size].split(None, 1)) < 2 for start in starts)


def _without_defaults(options: dict[str, Any]) -> dict[str, Any]:
    """Without None and False, which is how a newer `tokenizers` adds an unused option."""
    return {key: item for key, item in options.items() if item is not None and item is not False}
