"""The content of a GGUF file: its fields, and where its tensors are.

The package gguf has a reader too, but not for files from anywhere: a wrong count makes it loop over
what lies beyond the end of the file. Here every count is bounded by the bytes that are there, and
tensors are read, not mapped, so a file that is cut off later is an error, not a crash. The package
dequantizes.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import math
import re
import struct
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from smollm2.errors import UserError
from smollm2.files import base_name

if TYPE_CHECKING:
    import numpy as np
    from gguf import GGMLQuantizationType
    from torch import Tensor

MAGIC = b"GGUF"
VERSIONS = (2, 3)  # version 1 has shorter counts
STRING, ARRAY = 8, 9
# Letters of the module `struct` for the types that are numbers.
NUMBERS = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}
ALIGNMENT = 32  # where the file names none
# Beyond any model of today: what exceeds them is damage.
LARGEST_HEADER = 64 * 2**20  # bytes
MOST_FIELDS = 2**16
MOST_TENSORS = 2**18
MOST_ITEMS = 2**22  # of a list
MOST_DIMENSIONS = 4
PLAIN = re.compile(r"[A-Za-z0-9_.-]{1,200}")  # a name; one with a slash could be a path
PART = re.compile(r"-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf$", re.I)


@dataclass(frozen=True)
class TensorPlace:
    """Where a tensor is in the file.

    Args:
        shape: rows last but one, as in torch.
        start: of its bytes in the file.
    """

    kind: "GGMLQuantizationType"
    shape: tuple[int, ...]
    start: int
    n_bytes: int


@dataclass(frozen=True)
class GgufFile:
    """A GGUF file whose header has been read and whose tensors all lie in it.

    Args:
        fields: numbers, texts, lists of texts, and arrays of numbers.
    """

    path: Path
    fields: dict[str, Any]
    tensors: dict[str, TensorPlace]

    def values(self, name: str) -> "Tensor":
        """A tensor in fp32.

        Raises:
            UserError: the package gguf cannot dequantize it, a weight is not finite, or the file
                was cut off since.
        """
        import numpy as np
        import torch
        from gguf import dequantize

        from smollm2.weights import require_finite

        place = self.tensors[name]
        try:
            data = np.fromfile(self.path, np.uint8, place.n_bytes, offset=place.start)
        except OSError as error:
            raise not_readable(error) from None
        if len(data) < place.n_bytes:
            raise cut_off()
        try:
            with np.errstate(all="ignore"):  # what is not finite is reported below
                rows = data.reshape(*place.shape[:-1], -1)
                values = dequantize(rows, place.kind).reshape(place.shape)
        except NotImplementedError:
            raise UserError(
                f"{name} is in {place.kind.name}, which the installed package gguf cannot "
                "dequantize: upgrade it (pip install -U gguf), or take the model in another type."
            ) from None
        tensor = torch.from_numpy(values.astype(np.float32, copy=False))
        require_finite({name: tensor}, base_name(self.path))
        return tensor


def read_gguf(path: Path) -> GgufFile:
    """The header of a GGUF file.

    Raises:
        UserError: the package gguf is missing, the file is no GGUF file, is damaged, big-endian or
            only a part of a model, or a tensor has a type that the package does not know.
    """
    if find_spec("gguf") is None:
        raise UserError("GGUF files are read with the package gguf: pip install gguf")
    if (part := PART.search(path.name)) and int(part["count"]) > 1:
        raise part_of(int(part["count"]))
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header = _Header(file, size)
            header.start()
            n_tensors = header.count(MOST_TENSORS, "tensors")
            n_fields = header.count(MOST_FIELDS, "fields")
            fields = header.fields(n_fields)
            n_parts = fields.get("split.count", 1)
            if type(n_parts) is not int or n_parts > 1:
                raise part_of(n_parts)
            tensors = header.tensors(n_tensors, alignment_of(fields))
    except OSError as error:
        raise not_readable(error) from None
    return GgufFile(path, fields, tensors)


class _Header:
    """Reads a file from its start, never more than is there."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file = file
        self.size = size

    def take(self, n_bytes: int) -> bytes:
        """The next bytes."""
        end = self.file.tell() + n_bytes
        if end > self.size:
            raise cut_off()
        if end > LARGEST_HEADER:
            raise damaged(f"its header has more than {LARGEST_HEADER // 2**20} MiB")
        content = self.file.read(n_bytes)
        if len(content) < n_bytes:  # since it was opened
            raise cut_off()
        return content

    def number(self, letter: str) -> Any:
        """A little-endian number of a type of the module `struct`."""
        return struct.unpack(f"<{letter}", self.take(struct.calcsize(f"<{letter}")))[0]

    def text(self) -> str:
        try:
            return self.take(self.number("Q")).decode()
        except UnicodeDecodeError:
            raise damaged("a text in its header is not UTF-8") from None

    def name(self, what: str, before: dict[str, Any]) -> str:
        """The name of a field or a tensor, which must be plain and new."""
        text = self.text()
        if not PLAIN.fullmatch(text):
            raise damaged(f"the name of a {what} in it is {text!r:.60}")
        if text in before:
            raise damaged(f"it has the {what} {text} twice")
        return text

    def count(self, most: int, what: str) -> int:
        if (number := self.number("Q")) > most:
            raise damaged(f"it claims to have {number:,} {what}")
        return int(number)

    def start(self) -> None:
        """Read up to the version."""
        if not self.size:
            raise UserError("it is empty; copy or fetch it again.")
        if self.size < len(MAGIC) or self.take(len(MAGIC)) != MAGIC:
            raise UserError("it is not a GGUF file, whatever its name: it does not begin as one.")
        version = self.number("I")
        if version and version % 2**16 == 0:
            raise UserError(
                "it is big-endian, and only little-endian files can be imported; convert it with "
                "gguf-convert-endian of the package gguf."
            )
        if version not in VERSIONS:
            raise UserError(
                f"it is of version {version} of the format, and only versions "
                f"{' and '.join(map(str, VERSIONS))} can be imported."
            )

    def fields(self, n: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for _ in range(n):
            key = self.name("field", found)
            found[key] = self.value(self.number("I"))
        return found

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.text()
        if kind != ARRAY:
            return self.number(letter_of(kind))
        kind, n = self.number("I"), self.count(MOST_ITEMS, "items of a list")
        if kind == STRING:
            return [self.text() for _ in range(n)]
        return self.array(letter_of(kind), n)

    def array(self, letter: str, n: int) -> "np.ndarray[Any, Any]":
        import numpy as np

        dtype = np.dtype(letter).newbyteorder("<")
        return np.frombuffer(self.take(n * dtype.itemsize), dtype)

    def tensors(self, n: int, alignment: int) -> dict[str, TensorPlace]:
        """The places of the tensors, whose bytes follow the header."""
        found: dict[str, TensorPlace] = {}
        for _ in range(n):
            name = self.name("tensor", found)
            n_dimensions = self.number("I")
            if not 1 <= n_dimensions <= MOST_DIMENSIONS:
                raise damaged(f"{name} has {n_dimensions} dimensions")
            shape = tuple(reversed([self.number("Q") for _ in range(n_dimensions)]))
            kind = kind_of(name, self.number("I"))
            found[name] = TensorPlace(kind, shape, self.number("Q"), bytes_of(name, shape, kind))
        start = -(-self.file.tell() // alignment) * alignment
        for name, place in found.items():
            if place.start % alignment:
                raise damaged(f"{name} does not begin at a multiple of {alignment} bytes")
            if start + place.start + place.n_bytes > self.size:
                raise cut_off()
            found[name] = replace(place, start=start + place.start)
        return found


def letter_of(kind: int) -> str:
    """The letter of the module `struct` for the type of a number."""
    if kind not in NUMBERS:
        raise damaged(f"a field in it is of type {kind}")
    return NUMBERS[kind]


def kind_of(name: str, number: int) -> "GGMLQuantizationType":
    """The type of a tensor."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        kind = GGMLQuantizationType(number)
        GGML_QUANT_SIZES[kind]
    except (ValueError, KeyError):
        raise UserError(
            f"{name} is of type {number}, which the installed package gguf does not know: "
            "upgrade it (pip install -U gguf)."
        ) from None
    return kind


def bytes_of(name: str, shape: tuple[int, ...], kind: "GGMLQuantizationType") -> int:
    """How many bytes a tensor has."""
    from gguf import GGML_QUANT_SIZES

    block, n_bytes = GGML_QUANT_SIZES[kind]
    if not all(shape) or shape[-1] % block:
        raise damaged(
            f"{name} has shape {shape}, and {kind.name} takes {block} weights of a row at a time"
        )
    return math.prod(shape) // block * n_bytes


def alignment_of(fields: dict[str, Any]) -> int:
    """The multiple of bytes at which tensors begin."""
    alignment = fields.get("general.alignment", ALIGNMENT)
    if type(alignment) is not int or not 0 < alignment <= 2**16 or alignment & (alignment - 1):
        raise damaged(f"general.alignment is {alignment!r:.60}, not a power of two")
    return alignment


def part_of(count: Any) -> UserError:
    """The error for a file that is a part of a model."""
    return UserError(
        f"it is one of {count!r:.60} parts of a model; make one file of them with llama.cpp "
        "(llama-gguf-split)."
    )


def not_readable(error: OSError) -> UserError:
    """The error for a file that the system does not let us read."""
    return UserError(f"it cannot be read: {error.strerror or error}.")


def cut_off() -> UserError:
    """The error for a file that ends too early."""
    return UserError("it is cut off: it ends before its content does; copy or fetch it again.")


def damaged(why: str) -> UserError:
    """The error for a file whose content breaks the format."""
    return UserError(f"it is damaged: {why}; copy or fetch it again.")
