"""The types of the fields of run.json, which may come from somebody else."""

import math
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from smollm2.protocol.run_config import MOST

LONGEST = 10_000  # characters of a text
SCORED_TEXT = "scored"  # what floors are of: the windows of the final test

Check = Callable[[Any], bool]


def is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= LONGEST


def is_time(value: Any) -> bool:
    """A time in ISO 8601, as `now` writes it."""
    try:
        return is_text(value) and bool(datetime.fromisoformat(value))
    except ValueError:
        return False


def is_table(value: Any) -> bool:
    return isinstance(value, dict)


def is_count(value: Any) -> bool:
    """A whole number from 0."""
    return type(value) is int and 0 <= value <= MOST


def is_size(value: Any) -> bool:
    """A whole number from 1."""
    return is_count(value) and value > 0


def is_positive(value: Any) -> bool:
    """A finite number above 0."""
    return type(value) in (int, float) and 0 < value < math.inf


def is_loss(value: Any) -> bool:
    """Of an n-gram model in nats/token: at most that of guessing among 2^64 tokens."""
    return type(value) in (int, float) and 0 <= value <= 64 * math.log(2)


def are_floors(value: Any) -> bool:
    """`data.Floors` as a table. Those of older versions do not name their text: the test split."""
    return (
        isinstance(value, dict)
        and value.keys() - {"text"} == {"tokens", "unigram", "trigram"}
        and value.get("text", SCORED_TEXT) == SCORED_TEXT
        and is_size(value["tokens"])
        and all(is_loss(value[name]) for name in ("unigram", "trigram"))
    )


def are_texts(value: Any) -> bool:
    """`ScoredText` as tables, by the fingerprints of their tokens."""
    return isinstance(value, dict) and all(
        isinstance(text, dict)
        and text.keys() == {"source", "documents", "bytes"}
        and is_text(text["source"])
        and all(
            isinstance(text[name], dict) and all(map(is_count, text[name].values()))
            for name in ("documents", "bytes")
        )
        for text in value.values()
    )


def is_truth(value: Any) -> bool:
    return type(value) is bool


def is_list(value: Any) -> bool:
    return isinstance(value, list)


def is_steps(value: Any) -> bool:
    return isinstance(value, list) and all(map(is_count, value))


def is_request(value: Any) -> bool:
    """A table whose numbers are finite and not negative."""
    return is_table(value) and all(
        0 <= each < math.inf for each in value.values() if type(each) in (int, float)
    )


def optional(check: Check) -> Check:
    return lambda value: value is None or check(value)


def one_of(*values: str) -> Check:
    return lambda value: isinstance(value, str) and value in values


FIELDS: dict[str, Check] = {
    "name": is_text,
    "arm": is_text,
    "equal": one_of("tokens", "flops", "seconds"),
    "started_from": optional(is_text),
    "error": optional(is_text),
    "created_at": optional(is_time),
    "finished_at": optional(is_time),
    "keep_steps": is_steps,
    "training_flops_per_token": is_positive,
    "protocol": is_table,
    "parameters.total": is_size,
    "parameters.active": is_size,
    "parameters.embedding": is_size,
    "environment.smolctl": is_text,
    "environment.python": is_text,
    "environment.torch": is_text,
    "environment.platform": is_text,
    "environment.device_name": is_text,
    "environment.threads": is_count,
    "environment.git_commit": optional(is_text),
}
# Manifests of older versions lack these.
LATER: dict[str, Check] = {
    "started_from_sha256": optional(is_text),
    "origin": optional(is_text),
    "at_once": is_count,
    "processes": is_steps,
    "parallel": one_of("fsdp"),
    "failed_at": optional(is_time),
    "bounds": is_table,
    "diverged": is_truth,
    "source.grid": optional(is_text),
    "matmul_flops_per_second": optional(is_positive),
    "floors": optional(are_floors),
    "texts": are_texts,
}
# Of an imported run.
SOURCE: dict[str, Check] = {
    "source.name": is_text,
    "source.fingerprint": is_text,
    "source.tokenizer_fingerprint": is_text,
    "source.dtype": is_text,
    "source.bos_token_id": optional(is_count),
    "source.eos_token_id": is_steps,
}
# Of a run that was trained here, whose training has a length.
TRAINED: dict[str, Check] = {
    "protocol.steps": is_size,
    "protocol.validation_tokens": is_size,
    "protocol.test_tokens": is_size,
    "protocol.data": is_table,
    "protocol.data.train_tokens": is_size,
    "request": is_request,
    "request.data": is_text,
    "request.recipe": is_text,
    "request.settings": is_list,
}


def wrong_field(manifest: Mapping[str, Any], *, is_imported: bool) -> str | None:
    """What is wrong with the first field of a wrong type, as a sentence without its period; None if
    none is."""
    fields = FIELDS | (SOURCE if is_imported else TRAINED)
    fields |= {name: check for name, check in LATER.items() if has(manifest, name)}
    for name, is_right in fields.items():
        *folders, last = name.split(".")
        inner: Any = manifest
        for folder in folders:
            if not isinstance(inner := inner.get(folder), Mapping):
                return f"its {folder} is {value_text(inner)}"
        if last not in inner:
            return f"it has no {name}"
        if not is_right(inner[last]):
            return f"its {name} is {value_text(inner[last])}"
    return None


def has(manifest: Mapping[str, Any], name: str) -> bool:
    """Whether a manifest has a field, such as `diverged` or `source.grid`."""
    folder, _, last = name.rpartition(".")
    inner = manifest.get(folder) if folder else manifest
    return isinstance(inner, Mapping) and last in inner


def value_text(value: Any) -> str:
    """The beginning of a value."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
