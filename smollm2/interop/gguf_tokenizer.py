"""What a GGUF file says about text: its tokenizer, the tokens that begin and end a text, chat
templates."""

import json
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from smollm2.data import Bounds
from smollm2.data.panics import no_panic, no_words
from smollm2.errors import UserError, reason
from smollm2.interop.gguf import PRE_TOKENIZERS
from smollm2.interop.gguf_config import require_one_of, shown
from smollm2.interop.hf import tokenizer_settings
from smollm2.parse import MAX_JSON
from smollm2.runs.text_settings import MAX_TEMPLATE, TEMPLATE, TOKENIZER

TOKENS = "tokenizer.ggml.tokens"
TOKEN_TYPES = "tokenizer.ggml.token_type"
MERGES = "tokenizer.ggml.merges"
CHAT = "tokenizer.chat_template"  # also followed by . and the name of another
# llama.cpp's names of ways to cut a text, and others for the same, whose tokenizers do no more.
CUTS = {name: steps for steps, name in PRE_TOKENIZERS.items()}
CUTS |= {other: CUTS[name] for other, name in [("starcoder", "smollm"), ("refact", "smollm")]}
CUTS |= {"phi-2": CUTS["gpt-2"]}
# Other fields that change tokens, with the only values that are supported.
ONLY = {
    "tokenizer.ggml.add_space_prefix": (False,),
    "tokenizer.ggml.remove_extra_whitespaces": (False,),
    "tokenizer.ggml.add_sep_token": (False,),
    "tokenizer.ggml.precompiled_charsmap": (),
}
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # types of tokens; others are of other models


def tokens_in(fields: dict[str, Any]) -> list[str]:
    """The tokens of a file, by number.

    Raises:
        UserError: it has none, or they are not texts.
    """
    return texts(fields, TOKENS)


def rebuilt_tokenizer(fields: dict[str, Any]) -> Tokenizer:
    """The byte-level BPE tokenizer that the fields describe; see `describe_tokenizer`.

    Control tokens are special added tokens and the user's own are added tokens. Unused ones, which
    only fill up the embedding, are left out. Text is encoded literally, as by `load_tokenizer`.

    Raises:
        UserError: it is of another kind, or damaged.
    """
    require_one_of(fields, "tokenizer.ggml.model", ("gpt2",))  # any byte-level BPE
    require_one_of(fields, "tokenizer.ggml.pre", tuple(CUTS))
    for key in ONLY.keys() & fields.keys():
        require_one_of(fields, key, ONLY[key])
    tokens, kinds = tokens_in(fields), token_types(fields)
    numbers = {token: n for n, token in enumerate(tokens) if kinds[n] != UNUSED}
    if len(numbers) < len(kinds) - kinds.count(UNUSED):
        twice = next(token for n, token in enumerate(tokens) if numbers.get(token, n) != n)
        raise UserError(f"it has the token {twice!r:.60} twice in {TOKENS}.")
    merges = [pair_of(merge) for merge in texts(fields, MERGES)]
    added = [
        AddedToken(tokens[n], special=kind == CONTROL, normalized=kind != CONTROL)
        for n, kind in enumerate(kinds)
        if kind in (CONTROL, USER_DEFINED)
    ]
    try:
        with no_words(), no_panic():
            tokenizer = Tokenizer(models.BPE(vocab=numbers, merges=merges))
            tokenizer.add_tokens(added)
            tokenizer.post_processor = template_of(fields, tokens)
    except Exception as error:  # `tokenizers` raises plain Exception
        raise UserError(f"its tokenizer is damaged ({reason(error)}).") from None
    steps = [step_of(*step) for step in CUTS[fields["tokenizer.ggml.pre"]]]
    tokenizer.pre_tokenizer = steps[0] if len(steps) == 1 else pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.encode_special_tokens = True
    return tokenizer


def token_types(fields: dict[str, Any]) -> list[int]:
    """The type of each token; without any, all are normal."""
    n_tokens = len(tokens_in(fields))
    if TOKEN_TYPES not in fields:
        return [NORMAL] * n_tokens
    value = fields[TOKEN_TYPES]
    kinds = [] if isinstance(value, int | float | str) else list(map(int, value))
    if len(kinds) != n_tokens:
        raise UserError(f"it has {n_tokens:,} tokens and {TOKEN_TYPES} of {len(kinds):,}.")
    if others := set(kinds) - {NORMAL, CONTROL, USER_DEFINED, UNUSED}:
        raise UserError(
            f"it has {TOKEN_TYPES} {min(others)}, and only {NORMAL} (normal), {CONTROL} (control), "
            f"{USER_DEFINED} (user-defined) and {UNUSED} (unused) can be imported."
        )
    return kinds


def texts(fields: dict[str, Any], key: str) -> list[str]:
    """The list of texts in a field.

    Raises:
        UserError: there is none.
    """
    value = fields.get(key)
    if not isinstance(value, list):
        raise UserError(f"it has {key} {shown(value)}, and only a list of texts can be imported.")
    return value


def pair_of(merge: str) -> tuple[str, str]:
    """The two tokens of a merge; a space in a token is written otherwise."""
    left, _, right = merge.partition(" ")
    if not (left and right) or " " in right:
        raise UserError(f"it has {merge!r:.60} in {MERGES}, and only pairs can be imported.")
    return left, right


def step_of(kind: str, setting: bool) -> pre_tokenizers.PreTokenizer:
    """A step of `PRE_TOKENIZERS`."""
    if kind == "Digits":
        return pre_tokenizers.Digits(individual_digits=setting)
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=setting)


def template_of(fields: dict[str, Any], tokens: list[str]) -> processors.PostProcessor | None:
    """What adds the tokens that begin and end a text, where the file asks for it."""
    bounds = read_text_bounds(fields)
    sides = (("add_bos_token", bounds.begin), ("add_eos_token", next(iter(bounds.ends), None)))
    begin, end = (
        [number] if number is not None and fields.get(f"tokenizer.ggml.{name}") else []
        for name, number in sides
    )
    if not (begin or end):
        return None
    return processors.TemplateProcessing(
        single=[*(tokens[n] for n in begin), "$A", *(tokens[n] for n in end)],
        special_tokens=[(tokens[n], n) for n in dict.fromkeys([*begin, *end])],
    )


def read_text_bounds(fields: dict[str, Any]) -> Bounds:
    """The tokens that begin, end and pad a text. As in llama.cpp, the number of no token is none.

    Raises:
        UserError: a field holds something other than a number.
    """
    n_tokens = len(tokens_in(fields))

    def token(name: str) -> int | None:
        value = fields.get(f"tokenizer.ggml.{name}_token_id")
        if value is not None and type(value) is not int:
            raise UserError(
                f"it has tokenizer.ggml.{name}_token_id {shown(value)}, and only the number of a "
                "token can be imported."
            )
        return value if value is not None and 0 <= value < n_tokens else None

    ends = [token(name) for name in ("eos", "eot", "eom")]
    known = tuple(dict.fromkeys(end for end in ends if end is not None))
    return Bounds(token("bos"), known, token("padding"))


def kept_settings(fields: dict[str, Any], max_seq_len: int) -> dict[str, bytes]:
    """What a run keeps of the file for its text, as files of transformers: the special tokens and
    chat templates.

    Raises:
        UserError: a template is not a text, or too long.
    """
    tokens, bounds = tokens_in(fields), read_text_bounds(fields)
    special = {"bos_token": bounds.begin, "eos_token": next(iter(bounds.ends), None)}
    special["pad_token"] = bounds.pad
    named = {name: tokens[number] for name, number in special.items() if number is not None}
    content = tokenizer_settings(max_seq_len, **named)
    files, found = {}, templates(fields)
    if found.keys() == {"default"}:
        files[TEMPLATE] = found["default"].encode()
    elif found:
        content["chat_template"] = [
            {"name": name, "template": template} for name, template in found.items()
        ]
    files[TOKENIZER] = (json.dumps(content, indent=2) + "\n").encode()
    if len(files[TOKENIZER]) > MAX_JSON:
        raise UserError(f"its chat templates have more than {MAX_JSON:,} bytes.")
    return files


def templates(fields: dict[str, Any]) -> dict[str, str]:
    """The chat templates by name; the one without a name is `default`."""
    found = {}
    for key, value in fields.items():
        if key != CHAT and not key.startswith(f"{CHAT}."):
            continue
        if not isinstance(value, str) or len(value.encode()) > MAX_TEMPLATE:
            raise UserError(f"{key} is not a text of at most {MAX_TEMPLATE:,} bytes.")
        found[key.removeprefix(CHAT).removeprefix(".") or "default"] = value
    return found
