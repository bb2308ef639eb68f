"""Turns the settings that the library names into command-line flags."""

import re

SETTING = re.compile(r"`(\w+)(?:=([^`]*))?`")

REGULAR = (
    *("backend", "batch_offset", "bits", "chat", "data", "data_dir", "data_seed", "detect"),
    *("device", "dtype", "flops", "grad_accum", "held_out"),
    *("group_size", "lr", "max_new_tokens", "method", "micro_batch_size", "name", "optimizer"),
    *("out", "results", "resume", "schedule", "seed", "seq_len", "shards", "steps", "tasks"),
    *("temperature", "test_tokens", "tokenizer", "tokens", "top_k", "top_p", "val_every"),
    "val_tokens",
)
FLAGS = {name: "--" + name.replace("_", "-") for name in REGULAR} | {
    "compile": "--compile",
    "value_bits": "--v8",
    "embedding_bits": "--embedding",
    "format": "--to",
    "max_seq_len": "--set max_seq_len",
    "settings": "--set",
    "started_from": "--from",
    "vocab_size": "--set vocab_size",
}


def with_flags(message: str) -> str:
    """A message of the library, with its settings as command-line flags.

    `seq_len` becomes --seq-len, `seq_len=512` --seq-len 512, `compile=False` --no-compile and
    `vocab_size=512` --set vocab_size=512. Other text in backticks is unchanged.
    """
    return SETTING.sub(_flag, message)


def error_message(error: Exception) -> str:
    """An error as the command line prints it: the flag of its field comes first, unless the
    message names it."""
    message = with_flags(str(error))
    flag = FLAGS.get(getattr(error, "field", None) or "")
    return message if flag is None or flag in message else f"{flag}: {message}"


def _flag(match: re.Match[str]) -> str:
    name, value = match.groups()
    if name not in FLAGS:
        return match[0]
    flag = FLAGS[name]
    if value == "False":
        return flag.replace("--", "--no-", 1)
    if value in (None, "True"):
        return flag
    return f"{flag}={value}" if " " in flag else f"{flag} {value}"
