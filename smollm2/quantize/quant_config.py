"""One way to quantize a model: bits, backend, method, group size, and the embedding."""

import re
from dataclasses import dataclass

from smollm2.errors import UserError, did_you_mean, unknown
from smollm2.quantize.format import Format
from smollm2.quantize.registry import (
    BACKENDS,
    DEFAULT_BACKEND,
    all_formats,
    backend_order,
    embedding_format,
    find_backend,
)

BF16 = "bf16"  # what tables call the model as trained
VALIDATION_TOKENS = 16_384  # default number on which the change of the loss is measured
DEFAULT_GROUP_SIZE = 64
DEFAULT_EMBEDDING_BITS = 8


@dataclass(frozen=True)
class QuantConfig:
    """How the matrices of a model are quantized.

    Args:
        bits: per code; with `backend` it says which `Format` the matrices get.
        backend: one of `BACKENDS`.
        method: how the codes are chosen: `rtn` rounds to nearest; others as the format has them.
        group_size: weights along the input that share a scale; None where each row has one.
        embedding_bits: of the embedding and the head: 8 (by row), 4 (in groups), or None, which
            leaves them in bf16.

    Raises:
        UserError: there is no such quantization.
    """

    bits: int = 4
    backend: str = DEFAULT_BACKEND
    method: str = "rtn"
    group_size: int | None = DEFAULT_GROUP_SIZE
    embedding_bits: int | None = DEFAULT_EMBEDDING_BITS

    def __post_init__(self) -> None:
        backend = find_backend(self.backend)
        format = backend.format(self.bits)
        if format is None:
            raise UserError(
                f"`bits` takes {' or '.join(map(str, backend.bits))}, not {self.bits}.",
                field="bits",
            )
        require_method(self.method, format)
        require_group_size(self.group_size, format)
        if self.embedding_bits is not None and embedding_format(self.embedding_bits) is None:
            raise UserError(
                f"`embedding_bits` takes 8, 4 or none, not {self.embedding_bits}.",
                field="embedding_bits",
            )

    @property
    def format(self) -> Format:
        """Of the matrices, the embedding and the head aside."""
        format = BACKENDS[self.backend].format(self.bits)
        assert format is not None  # checked when the configuration was made
        return format

    @property
    def name(self) -> str:
        """`int4-g64`, `nf4-g128`, `llm-int8`, `int4-g32-hqq-emb4`: defaults are omitted, except the
        group size. `of` parses it."""
        parts = [self.format.name]
        if self.group_size is not None:
            parts.append(f"g{self.group_size}")
        if self.method != self.format.methods[0]:
            parts.append(self.method)
        if self.embedding_bits != DEFAULT_EMBEDDING_BITS:
            parts.append(f"emb{self.embedding_bits or 16}")
        return "-".join(parts)

    @classmethod
    def of(cls, name: str) -> "QuantConfig":
        """The configuration with this `name`.

        Raises:
            UserError: there is none.
        """
        for backend in BACKENDS.values():
            for format in backend.formats:
                methods = "|".join(map(re.escape, format.methods[1:])) or "(?!)"
                pattern = rf"{re.escape(format.name)}(-g(\d+))?(-({methods}))?(-emb(\d+))?"
                if (match := re.fullmatch(pattern, name)) is None:
                    continue
                _, size, _, method, _, embedding = match.groups()
                try:
                    config = cls(
                        format.bits,
                        backend.name,
                        method or format.methods[0],
                        int(size) if size else None,
                        embedding_bits_of(embedding),
                    )
                except UserError:
                    continue  # such as a group size that the format does not have
                if config.name == name:
                    return config
        names = [config.name for config in cls().grid()]
        raise UserError(
            f"{name!r} is not a quantization.{did_you_mean(name, names)} Available: "
            f"{', '.join(names)}, and with a method and embedding bits names such as "
            "int4-g64-hqq-emb4."
        )

    def grid(self) -> "list[QuantConfig]":
        """Every format of every backend with every group size. The method is this one's where the
        format has it; the embedding is as here."""
        return [
            QuantConfig(
                format.bits,
                backend.name,
                self.method if self.method in format.methods else format.methods[0],
                size,
                self.embedding_bits,
            )
            for backend in BACKENDS.values()
            for format in backend.formats
            for size in format.group_sizes or (None,)
        ]


def row_order(name: str) -> tuple[int, ...]:
    """The place of a configuration in tables: the model as trained, then every backend's formats,
    group sizes, methods and embeddings; other names come last."""
    try:
        config = QuantConfig.of(name)
    except UserError:
        return (-1,) if name == BF16 else (len(BACKENDS),)
    return (
        backend_order(config.backend),
        BACKENDS[config.backend].formats.index(config.format),
        config.group_size or 0,
        config.format.methods.index(config.method),
        config.embedding_bits != DEFAULT_EMBEDDING_BITS,
        config.embedding_bits or 16,
    )


def require_method(method: str, format: Format) -> None:
    """Raise `UserError` unless `format` has the method."""
    if method in format.methods:
        return
    known = list(dict.fromkeys(method for one in all_formats() for method in one.methods))
    if method not in known:
        raise unknown("method", method, known, field="method")
    places = [
        f"{one.bits} bits with {backend.name}"
        for backend in BACKENDS.values()
        for one in backend.formats
        if method in one.methods
    ]
    raise UserError(f"`method={method}` is for {' or '.join(places)}.", field="method")


def require_group_size(size: int | None, format: Format) -> None:
    """Raise `UserError` unless `format` has the group size."""
    if not format.group_sizes and size is not None:
        raise UserError(
            f"{format.name} has one scale per row; omit `group_size`.", field="group_size"
        )
    if format.group_sizes and size not in format.group_sizes:
        sizes = ", ".join(map(str, format.group_sizes))
        raise UserError(f"`group_size` takes {sizes}, not {size}.", field="group_size")


def embedding_bits_of(digits: str | None) -> int | None:
    """What `emb` followed by `digits` in a name stands for: 16 is an unquantized embedding."""
    if digits is None:
        return DEFAULT_EMBEDDING_BITS
    return None if digits == "16" else int(digits)
