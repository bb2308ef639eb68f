"""One way to quantize a model: bits, backend, method, group size, and the embedding."""

import re
from dataclasses import dataclass

from smollm2.errors import UserError, did_you_mean, unknown
from smollm2.quantize.format import CALIBRATED, Format
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
            `clip` and `gptq` are calibrated (`smollm2.quantize.codes`).
        group_size: weights along the input that share a scale; None where each row has one, as by
            default at 8 bits.
        embedding_bits: of the embedding and the head: 8 (by row), 4 (in groups), or None, which
            leaves them in bf16.
        value_bits: of the value projections: 8 (by row), or None for those of the other matrices.

    Raises:
        UserError: there is no such quantization.
    """

    bits: int = 4
    backend: str = DEFAULT_BACKEND
    method: str = "rtn"
    group_size: int | None = DEFAULT_GROUP_SIZE
    embedding_bits: int | None = DEFAULT_EMBEDDING_BITS
    value_bits: int | None = None

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
        if self.value_bits is not None and (self.value_bits, format.name) != (8, "int4"):
            raise UserError(
                "`value_bits` takes 8, where the other matrices have 4 bits with torchao.",
                field="value_bits",
            )

    @property
    def format(self) -> Format:
        """Of the matrices, the embedding and the head aside."""
        format = BACKENDS[self.backend].format(self.bits)
        assert format is not None  # checked when the configuration was made
        return format

    @property
    def is_calibrated(self) -> bool:
        """Whether the codes depend on calibration text."""
        return self.method in CALIBRATED

    @property
    def name(self) -> str:
        """`int4-g64`, `nf4-g128`, `llm-int8`, `int4-g32-clip-v8-emb4`: rounding to nearest, values
        like the other matrices and an embedding of 8 bits are not named. `of` parses it."""
        parts = [self.format.name]
        if self.group_size is not None:
            parts.append(f"g{self.group_size}")
        if self.method != self.format.methods[0]:
            parts.append(self.method)
        if self.value_bits is not None:
            parts.append(f"v{self.value_bits}")
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
                pattern = rf"{re.escape(format.name)}(-g(\d+))?(-({methods}))?(-v(\d))?(-emb(\d+))?"
                if (match := re.fullmatch(pattern, name)) is None:
                    continue
                _, size, _, method, _, values, _, embedding = match.groups()
                try:
                    config = cls(
                        format.bits,
                        backend.name,
                        method or format.methods[0],
                        int(size) if size else None,
                        embedding_bits_of(embedding),
                        int(values) if values else None,
                    )
                except UserError:
                    continue  # such as a group size that the format does not have
                if config.name == name:
                    return config
        names = [config.name for config in cls().grid()]
        raise UserError(
            f"{name!r} is not a quantization.{did_you_mean(name, names)} Available: "
            f"{', '.join(names)}, and with a method and embedding bits names such as "
            "int4-g64-clip-emb4."
        )

    def grid(self) -> "list[QuantConfig]":
        """Every format of every backend, with a scale per row where it may have one, else with
        every group size. The method is this one's where the format has it, and the values' bits
        where they are for it; the embedding is as here."""
        return [
            QuantConfig(
                format.bits,
                backend.name,
                self.method if self.method in format.methods else format.methods[0],
                size,
                self.embedding_bits,
                self.value_bits if format is self.format else None,
            )
            for backend in BACKENDS.values()
            for format in backend.formats
            for size in (format.group_sizes if format.needs_groups else (None,))
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
        config.value_bits or 0,
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
    if size in format.group_sizes:
        return
    sizes = ", ".join(str(known) for known in format.group_sizes if known is not None)
    if not sizes:
        raise UserError(
            f"{format.name} has one scale per row; omit `group_size`.", field="group_size"
        )
    raise UserError(f"`group_size` takes {sizes}, not {size}.", field="group_size")


def embedding_bits_of(digits: str | None) -> int | None:
    """What `emb` followed by `digits` in a name stands for: 16 is an unquantized embedding."""
    if digits is None:
        return DEFAULT_EMBEDDING_BITS
    return None if digits == "16" else int(digits)
