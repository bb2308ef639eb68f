"""Architectures: the five variants, the nano scale, and the user's own variants.

A variant is named by `pow2`, by `pow2:n_kv_heads=8,n_layers=28`, or by a TOML file; each gives a
`ModelConfig`. Adding a variant is one entry in `VARIANTS`.
"""

import dataclasses
import math
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from smollm2.errors import UserError, did_you_mean
from smollm2.parse import read_toml, with_underscores

T = TypeVar("T")

# The largest values, far beyond any model trained today: what exceeds them is a slip or damage, and
# is refused before it is allocated or counted up to.
LIMITS = {
    "d_model": 2**20,
    "n_heads": 2**14,
    "n_kv_heads": 2**14,
    "n_layers": 2**12,
    "d_ff": 2**24,
    "n_experts": 2**12,
    "n_active_experts": 2**12,
    "vocab_size": 2**24,
    "max_seq_len": 2**30,
}


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a Llama-style decoder without biases.

    With `n_experts` above 1 the MLP of every layer is a mixture of experts (Mixtral layout), each
    expert a SwiGLU of width `d_ff`; a token uses `n_active_experts` of them. With `tie_embeddings`
    the embedding matrix is also the head.

    Raises:
        UserError: from `ModelConfig(...)` itself, if the numbers do not form a model.
    """

    d_model: int
    n_heads: int
    n_kv_heads: int
    n_layers: int
    d_ff: int
    n_experts: int = 1
    n_active_experts: int = 1
    vocab_size: int = 49_152
    max_seq_len: int = 2048
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5
    tie_embeddings: bool = True

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type is not bool and not 0 < value < math.inf:  # false for nan
                raise UserError(f"{field.name} must be positive and finite, not {value}.")
            if value > (limit := LIMITS.get(field.name, math.inf)):
                raise UserError(
                    f"{field.name} must be at most {limit:,}, not {value}.", field=field.name
                )
        if self.d_model % self.n_heads:
            raise UserError(
                f"d_model {self.d_model} is not a multiple of n_heads {self.n_heads}; "
                f"choose n_heads from {divisors(self.d_model)}."
            )
        if self.head_dim % 2:
            raise UserError(
                f"The head width d_model / n_heads = {self.head_dim} is odd, and rotary positions "
                "turn pairs of numbers; choose n_heads so that it is even."
            )
        if self.n_heads % self.n_kv_heads:
            raise UserError(
                f"n_heads {self.n_heads} is not a multiple of n_kv_heads {self.n_kv_heads}; "
                f"choose n_kv_heads from {divisors(self.n_heads)}."
            )
        if self.is_moe and (self.d_model % 8 or self.d_ff % 8):
            raise UserError(
                f"Experts need a d_model and d_ff divisible by 8, not {self.d_model} and "
                f"{self.d_ff}: their grouped product reads rows aligned to 16 bytes."
            )
        if self.n_active_experts > self.n_experts:
            raise UserError(
                f"n_active_experts {self.n_active_experts} is more than n_experts {self.n_experts}."
            )

    @property
    def head_dim(self) -> int:
        return self.d_model // self.n_heads

    @property
    def is_moe(self) -> bool:
        return self.n_experts > 1

    @property
    def init_std(self) -> float:
        """1/√d_model: 1/24 for `orig`, as in SmolLM2-135M's published training config."""
        return float(self.d_model**-0.5)


VARIANTS: dict[str, ModelConfig] = {
    # SmolLM2-135M as published.
    "orig": ModelConfig(d_model=576, n_heads=9, n_kv_heads=3, n_layers=30, d_ff=1536),
    # The "original" of a published power-of-two study, which had 174 M parameters, not 135 M.
    "orig-174m": ModelConfig(d_model=576, n_heads=9, n_kv_heads=3, n_layers=30, d_ff=2304),
    "pow2": ModelConfig(d_model=512, n_heads=8, n_kv_heads=4, n_layers=32, d_ff=2048),
    # pow2 with as many parameters as orig.
    "pow2-135m": ModelConfig(d_model=512, n_heads=8, n_kv_heads=4, n_layers=28, d_ff=2048),
    "moe-160m": ModelConfig(
        d_model=512, n_heads=8, n_kv_heads=8, n_layers=8, d_ff=1280, n_experts=8, n_active_experts=2
    ),
}

SCALES = ("full", "nano")  # of variants; an imported model may also be `small` (cost.scale_of)


def variant(spec: str, scale: str = "full", settings: Iterable[str] = ()) -> ModelConfig:
    """The architecture that `spec` names.

    Args:
        spec: a key of `VARIANTS`, optionally with fields (`pow2:n_kv_heads=8,n_layers=28`), or a
            TOML file of `ModelConfig` fields, with `base = "pow2"` to start from a variant.
        scale: `full`, or `nano` (see `nano`). Fields in `spec` and `settings` are set after
            scaling and taken literally; a TOML file describes the full size.
        settings: more fields, each `field=value`.

    Raises:
        UserError: unknown name, field or scale, a value of the wrong type, or numbers that do not
            form a model.
    """
    if scale not in SCALES:
        raise UserError(f"Unknown scale {scale!r}; choose {' or '.join(SCALES)}.")
    name, inline = split_spec(spec)
    if is_file_spec(name):
        config = from_toml(Path(name))
    else:
        if name not in VARIANTS:
            raise UserError(
                f"Unknown variant {name!r}.{did_you_mean(name, list(VARIANTS))} "
                f"Available: {', '.join(VARIANTS)}, or a TOML file of your own (my.toml)."
            )
        config = VARIANTS[name]
    if scale == "nano":
        config = nano(config)
    fields = [part for part in inline.split(",") if part] + list(settings)
    return replace_fields(config, dict(split_setting(field) for field in fields))


def split_spec(spec: str) -> tuple[str, str]:
    """`"pow2:n_layers=28"` -> `("pow2", "n_layers=28")`; a path may hold a colon (`C:\\...`)."""
    head, _, fields = spec.rpartition(":")
    return (head, fields) if len(head) > 1 else (spec, "")


def is_file_spec(spec: str) -> bool:
    """Whether a variant is given as a TOML file."""
    return spec.endswith(".toml")


def nano(config: ModelConfig) -> ModelConfig:
    """A quarter of the width, half of the depth, vocabulary 4096; head counts stay.

    The ratios of the variants' non-embedding parameters are those of the full size. Use it
    to learn, to test and to compare losses; speed and bytes are judged at full size only.
    """
    if config.d_model % 4 or config.d_ff % 4 or config.n_layers % 2:
        raise UserError(
            "The nano scale needs d_model and d_ff divisible by 4 and an even n_layers, not "
            f"{config.d_model}, {config.d_ff} and {config.n_layers}."
        )
    return dataclasses.replace(
        config,
        d_model=config.d_model // 4,
        d_ff=config.d_ff // 4,
        n_layers=config.n_layers // 2,
        vocab_size=4096,
    )


def from_toml(path: Path) -> ModelConfig:
    """Read a variant from a TOML file: `base = "pow2"` and/or `ModelConfig` fields."""
    return read_toml(path, "variant", from_table)


def from_table(table: dict[str, Any]) -> ModelConfig:
    """The model that a variant file holds."""
    table = with_underscores(table)
    base = table.pop("base", None)
    if base is not None:
        if not isinstance(base, str) or is_file_spec(base):
            raise UserError('base must name a variant, such as base = "pow2".')
        return replace_fields(variant(base), table)
    required = [f.name for f in dataclasses.fields(ModelConfig) if f.default is dataclasses.MISSING]
    missing = [name for name in required if name not in table]
    if missing:
        raise UserError(
            f'it lacks {", ".join(missing)}; give them, or start from a variant: base = "pow2".'
        )
    return ModelConfig(**checked_fields(ModelConfig, table))


def settings_of(values: Any) -> list[str]:
    """The settings `["n_layers=28"]`, given as that list or as the table `{n_layers = 28}`.

    Raises:
        UserError: it is neither.
    """
    texts: list[Any] = values if isinstance(values, list) else [None]
    if isinstance(values, dict):
        texts = [
            f"{name}={str(value).lower() if isinstance(value, bool) else value}"
            for name, value in values.items()
        ]
        if any(isinstance(value, dict | list) for value in values.values()):
            texts = [None]
    if not all(isinstance(text, str) for text in texts):
        raise UserError(
            'set takes a list such as ["weight_decay=0.1"], or a table such as '
            f"{{ weight_decay = 0.1 }}, not {values!r}."
        )
    return texts


def split_setting(text: str) -> tuple[str, str]:
    """`"n_layers=28"` -> `("n_layers", "28")`; the name may have `-` for `_`."""
    name, equals, value = text.partition("=")
    if not equals or not name.strip() or not value.strip():
        raise UserError(f"{text!r} is not of the form field=value, such as n_layers=28.")
    return name.strip().replace("-", "_"), value.strip()


def replace_fields(config: T, values: Mapping[str, Any]) -> T:
    """A copy of the frozen dataclass `config` with `values` (typed, or text to be parsed) set."""
    return dataclasses.replace(config, **checked_fields(type(config), values))  # type: ignore[type-var]


def checked_fields(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with every name checked to be a field of `cls` and every value of its type."""
    types = {field.name: field.type for field in dataclasses.fields(cls)}
    unknown = [name for name in values if name not in types]
    if unknown:
        raise UserError(
            f"Unknown field {unknown[0]!r}.{did_you_mean(unknown[0], list(types))} "
            f"Available: {', '.join(types)}."
        )
    return {name: typed(name, value, types[name]) for name, value in values.items()}


def typed(name: str, value: Any, kind: Any) -> Any:
    """`value` as the `kind` (int, float, str or bool, or one of them or None) of field `name`."""
    (kind,) = [part for part in typing.get_args(kind) or (kind,) if part is not type(None)]
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is kind:
        return value
    if kind is bool and value in ("true", "false"):
        return value == "true"
    if isinstance(value, str) and kind is not bool:
        try:
            return kind(value)
        except ValueError:
            pass  # reported below, like every other mismatch
    wanted = {
        int: "a whole number",
        float: "a number",
        str: "text in quotes",
        bool: "true or false",
    }[kind]
    raise UserError(f"{name} takes {wanted}, not {value!r}.")


def divisors(n: int) -> str:
    """The divisors of `n`, for messages."""
    small = [k for k in range(1, math.isqrt(n) + 1) if n % k == 0]
    return ", ".join(map(str, sorted({*small, *(n // k for k in small)})))
