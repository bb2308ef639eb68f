"""Variants and options small enough that a run takes about a second."""

from pathlib import Path

TINY_VARIANT = """
d_model = 32
n_heads = 4
n_kv_heads = 2
n_layers = 2
d_ff = 64
vocab_size = 512
max_seq_len = 64
"""


TINY_MOE = TINY_VARIANT + "n_experts = 4\nn_active_experts = 2\n"


def tiny_options(variant: Path, corpus: Path) -> list[str]:
    return [
        *("train", "--variant", str(variant), "--data", str(corpus), "--tokenizer", "train:512"),
        *("--seq-len", "32", "--micro-batch-size", "2", "--val-every", "5"),
        *("--val-tokens", "128", "--test-tokens", "256"),
    ]


def changed(arguments: list[str], *options: str) -> list[str]:
    """The arguments with `options` (name, value, name, ...) instead of those of the same names."""
    return [*without(arguments, *options[::2]), *options]


def without(arguments: list[str], *names: str) -> list[str]:
    """The arguments without the options of these names, each with its value."""
    dropped = {at for at, word in enumerate(arguments) if word in names}
    return [word for at, word in enumerate(arguments) if not {at, at - 1} & dropped]
