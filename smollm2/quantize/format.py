"""What a quantization backend declares about itself. Needs no torch."""

from dataclasses import dataclass
from pkgutil import resolve_name
from typing import TYPE_CHECKING

from smollm2.quantize.shapes import Kernel

if TYPE_CHECKING:
    from smollm2.quantize.matrix import QuantizedMatrix

# Methods that choose codes by the inputs of a matrix on calibration text.
CALIBRATED = ("clip", "gptq")


@dataclass(frozen=True)
class Format:
    """One way to write a matrix.

    Args:
        name: what the names of its configurations start with: `int4` in `int4-g64-clip`.
        bits: per code; a backend has one format per number of bits.
        matrix: the subclass of `QuantizedMatrix`, or `"module:Class"`, imported when it is needed:
            with it comes torch.
        group_sizes: how many weights along the input may share a scale; None is a whole row, and
            the default where it is one of them.
        short_groups: whether the last group of a row may be shorter; otherwise a matrix whose
            inputs the size does not divide stays in bf16.
        methods: how codes can be chosen; the first one is not in the names of configurations.
        default_method: what is used unless another is asked for.
        row_devices: where single rows can be looked up, as an embedding needs; empty for a format
            that cannot hold an embedding.
        kernels: matrix products that compute with it.
    """

    name: str
    bits: int
    matrix: "str | type[QuantizedMatrix]"
    group_sizes: tuple[int | None, ...] = (None,)
    short_groups: bool = False
    methods: tuple[str, ...] = ("rtn",)
    default_method: str = "rtn"
    row_devices: tuple[str, ...] = ()
    kernels: tuple[Kernel, ...] = ()

    @property
    def needs_groups(self) -> bool:
        """Whether a row cannot have a single scale."""
        return None not in self.group_sizes

    @property
    def matrix_class(self) -> "type[QuantizedMatrix]":
        """The class, imported if need be."""
        if isinstance(self.matrix, str):
            found: type[QuantizedMatrix] = resolve_name(self.matrix)
            return found
        return self.matrix


@dataclass(frozen=True)
class Backend:
    """A library that quantizes.

    Args:
        package: what must be installed.
        formats: in the order in which a sweep tries them.
    """

    name: str
    package: str
    formats: tuple[Format, ...]

    @property
    def bits(self) -> tuple[int, ...]:
        """Of its formats."""
        return tuple(format.bits for format in self.formats)

    def format(self, bits: int) -> Format | None:
        """The format with so many bits; None if there is none."""
        return next((format for format in self.formats if format.bits == bits), None)
