"""Byte-level tokenizers: loaded, or trained on the corpus itself."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from smollm2.data.hub import require_on_hub
from smollm2.errors import UserError, did_you_mean

END_OF_TEXT = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>")
ALIASES = {"smollm2": "hub:HuggingFaceTB/SmolLM2-135M"}
SMALLEST_VOCAB = 300  # 256 bytes, the end of text and a few merges
LARGEST_VOCAB = 1_000_000  # several times that of any model
SAMPLE_BYTES = 32 * 2**20
SAMPLE_BYTES_PER_DOCUMENT = 256 * 2**10  # so that a few long books do not decide the vocabulary


@dataclass(frozen=True)
class Bounds:
    """The tokens between which a model writes a text.

    Args:
        begin: stands before a text that has no prompt; None where nothing does.
        ends: a text is over at any of them; empty where it never is.
    """

    begin: int | None
    ends: tuple[int, ...]


def load_tokenizer(spec: str, *, fetch: bool = True) -> Tokenizer:
    """The tokenizer of a folder, of a `tokenizer.json`, or of `smollm2` or `hub:ORG/NAME`.

    Text is encoded as it is: a document that spells out `<|endoftext|>` gets the tokens of those
    characters, never the special token.

    Args:
        fetch: whether one that is not on this machine yet is fetched from the hub.

    Raises:
        UserError: it is missing, damaged or cannot be fetched.
    """
    spec = ALIASES.get(spec, spec)
    path = _from_hub(spec, fetch) if spec.startswith("hub:") else _on_disk(spec)
    try:
        tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # `tokenizers` raises plain Exception for a broken file
        raise UserError(
            f"The tokenizer {Path(spec).name!r} is damaged ({error}): expected a tokenizer.json of "
            "the `tokenizers` library. Fetch it again, or use `train:4096`."
        ) from error
    return _of_plain_text(tokenizer)


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
    """Those of a model that is trained here: what ends a document also stands before the next one.

    Raises:
        UserError: as `end_of_text_id`.
    """
    end = end_of_text_id(tokenizer)
    return Bounds(end, (end,))


def token_bytes(tokenizer: Tokenizer) -> np.ndarray:
    """How many bytes of text each token stands for: `uint16 [vocab]`, 0 for a special token.

    The sum over the tokens of a text is the text's length in UTF-8, less the bytes for which the
    tokenizer has no token at all and which it drops: SmolLM2's lacks 21, of which text can hold
    six control characters and the first byte of planes that Unicode has not assigned.

    Raises:
        UserError: the tokenizer is not byte-level or changes text before encoding it, so that its
            tokens do not account for each byte.
    """
    vocab = tokenizer.get_vocab(with_added_tokens=True)
    added = tokenizer.get_added_tokens_decoder()
    learned = [token for token, number in vocab.items() if number not in added]
    alphabet = set(pre_tokenizers.ByteLevel.alphabet())
    if not (_keeps_bytes(tokenizer) and alphabet.issuperset("".join(learned))):
        raise UserError(
            "The tokenizer does not account for each byte of a text: expected byte-level BPE "
            "without a normalizer or an added space, as `smollm2` or `train:4096`."
        )
    sizes = np.zeros(max(vocab.values()) + 1, dtype=np.uint16)
    for token in learned:
        sizes[vocab[token]] = len(token)  # a character of the alphabet is a byte
    for number, extra in added.items():
        sizes[number] = 0 if extra.special else len(extra.content.encode())
    return sizes


def require_vocab(n_tokens: int, vocab_size: int) -> None:
    """Raise `UserError` if `n_tokens` tokens are more than a model with `vocab_size` embeds."""
    if n_tokens > vocab_size:
        raise UserError(
            f"The tokenizer has {n_tokens} tokens, the model {vocab_size}; use --tokenizer "
            f"train:{vocab_size}, or --set vocab_size={n_tokens}."
        )


def tokenizer_fingerprint(tokenizer: Tokenizer) -> str:
    """16 hex digits of SHA-256 over the tokenizer's JSON, however its file was laid out."""
    return _fingerprint(tokenizer.to_str())


@lru_cache(maxsize=1)  # a folder is opened with the tokenizer that it was just prepared with
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
    except Exception as error:  # a new class for each HTTP library the hub's client has moved to
        raise UserError(
            f"Fetching the tokenizer of {repo!r} failed ({error}); {instead}."
        ) from error


def _of_plain_text(tokenizer: Tokenizer) -> Tokenizer:
    # None of the three is text's own business: they are leftovers of how a model was last used.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer


def _sample(texts: Iterable[str]) -> Iterator[str]:
    left = SAMPLE_BYTES
    for text in texts:
        data = text.encode()[: min(left, SAMPLE_BYTES_PER_DOCUMENT)]
        yield data.decode(errors="ignore")
        left -= len(data)
        if left <= 0:
            return


def _keeps_bytes(tokenizer: Tokenizer) -> bool:
    layout = json.loads(tokenizer.to_str())
    first = layout["pre_tokenizer"] or {}
    steps = first.get("pretokenizers", [first])
    byte_level = [step for step in steps if step.get("type") == "ByteLevel"]
    added_space = any(step.get("add_prefix_space") for step in steps)
    return bool(byte_level) and not added_space and layout["normalizer"] is None


def _without_defaults(options: dict[str, Any]) -> dict[str, Any]:
    """Without None and False, which is how a newer `tokenizers` adds an unused option."""
    return {key: item for key, item in options.items() if item is not None and item is not False}
