"""What a quantization is: bits, backend, method, group size, and what becomes of the embedding."""

from dataclasses import dataclass

from smollm2.errors import UserError, did_you_mean
from smollm2.quantize.dimensions import GROUP_SIZES

BACKENDS = ("torchao", "bitsandbytes")
METHODS = ("rtn", "hqq")
VALIDATION_TOKENS = 16_384  # on which the change of the loss is measured unless others are asked


@dataclass(frozen=True)
class QuantConfig:
    """How the matrices of a model are quantized.

    Args:
        bits: 8 (one scale a row, symmetric) or 4 (one scale a group).
        backend: `torchao` chooses integers, with a zero point at 4 bits; `bitsandbytes` chooses
            NF4 (Dettmers et al. 2023, arXiv:2305.14314) and LLM.int8().
        method: how 4-bit integers are chosen: `rtn` rounds to nearest, `hqq` refines the zero
            points (Badri and Shaji 2023, Half-Quadratic Quantization).
        group_size: weights that share a scale at 4 bits, along the input; None at 8.
        embedding_bits: of the embedding, which is the head too: 8 (by row), 4 (in groups) or None,
            which leaves it as it is.
    """

    bits: int = 4
    backend: str = "torchao"
    method: str = "rtn"
    group_size: int | None = 64
    embedding_bits: int | None = 8

    def __post_init__(self) -> None:
        if self.bits not in (8, 4):
            raise UserError(f"--bits takes 8 or 4, not {self.bits}.")
        for option, value, known in (
            ("backend", self.backend, BACKENDS),
            ("method", self.method, METHODS),
        ):
            if value not in known:
                raise UserError(
                    f"Unknown {option} {value!r}.{did_you_mean(value, known)} There are "
                    f"{' and '.join(known)}."
                )
        if self.embedding_bits not in (8, 4, None):
            raise UserError(f"--embedding takes 8, 4 or none, not {self.embedding_bits}.")
        if self.bits == 8 and self.group_size is not None:
            raise UserError("At 8 bits there is one scale a row; leave --group-size out.")
        if self.bits == 4 and self.group_size not in GROUP_SIZES:
            sizes = ", ".join(map(str, GROUP_SIZES))
            raise UserError(f"--group-size takes {sizes}, not {self.group_size}.")
        if self.method == "hqq" and (self.bits, self.backend) != (4, "torchao"):
            raise UserError("--method hqq is for 4 bits with torchao.")

    @property
    def name(self) -> str:
        """`int4-g64`, `nf4-g128`, `llm-int8`, `int4-g32-hqq-emb4`: what is usual is left out."""
        kinds = {
            ("torchao", 8): "int8",
            ("torchao", 4): "int4",
            ("bitsandbytes", 8): "llm-int8",
            ("bitsandbytes", 4): "nf4",
        }
        parts = [kinds[self.backend, self.bits]]
        if self.group_size is not None:
            parts.append(f"g{self.group_size}")
        if self.method != "rtn":
            parts.append(self.method)
        if self.embedding_bits != 8:
            parts.append(f"emb{self.embedding_bits or 16}")
        return "-".join(parts)

    @property
    def options(self) -> str:
        """Of the `smolctl quantize` command that makes it."""
        words = [f"--bits {self.bits}"]
        if self.backend != "torchao":
            words.append(f"--backend {self.backend}")
        if self.group_size is not None:
            words.append(f"--group-size {self.group_size}")
        if self.method != "rtn":
            words.append(f"--method {self.method}")
        if self.embedding_bits != 8:
            words.append(f"--embedding {self.embedding_bits or 'none'}")
        return " ".join(words)

    @classmethod
    def of(cls, name: str) -> "QuantConfig":
        """The configuration that has this `name`.

        Raises:
            UserError: none has.
        """
        known = {
            config.name: config
            for embedding in (8, 4, None)
            for method in METHODS
            for config in cls(method=method, embedding_bits=embedding).grid()
        }
        if name not in known:
            raise UserError(
                f"{name!r} is no quantization.{did_you_mean(name, list(known))} There are "
                f"{', '.join(config.name for config in cls().grid())}, and with what is not usual "
                "int4-g64-hqq-emb4, for example."
            )
        return known[name]

    def grid(self) -> "list[QuantConfig]":
        """Both backends at 8 bits and at 4 with every group size; the rest as here."""
        method, embedding = self.method, self.embedding_bits
        return [
            QuantConfig(8, "torchao", "rtn", None, embedding),
            *(QuantConfig(4, "torchao", method, size, embedding) for size in GROUP_SIZES),
            QuantConfig(8, "bitsandbytes", "rtn", None, embedding),
            *(QuantConfig(4, "bitsandbytes", "rtn", size, embedding) for size in GROUP_SIZES),
        ]
