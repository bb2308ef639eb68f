"""GGUF files taken apart, changed and put together again, also as no writer would."""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import GGUFReader

ALIGNMENT = 32
DENSE = {
    "d_model": 64,
    "n_heads": 4,
    "n_kv_heads": 2,
    "n_layers": 2,
    "d_ff": 96,
    "vocab_size": 330,
    "max_seq_len": 128,
    "rope_theta": 20_000.0,
    "norm_eps": 1e-4,
}


@dataclass
class Part:
    """A tensor: its type's number, its shape (columns first) and its bytes."""

    kind: int
    shape: list[int]
    content: bytes


@dataclass
class Parts:
    """What a GGUF file is made of. Fields and tensors are lists, so a name may appear twice."""

    fields: list[tuple[str, Any]]
    tensors: list[tuple[str, Part]]
    version: int = 3
    order: str = "<"  # of bytes

    def set(self, **changes: Any) -> None:
        """Set fields, named with __ for each dot; those that are `...` are taken out."""
        named = {key.replace("__", "."): value for key, value in changes.items()}
        kept = [(key, value) for key, value in self.fields if key not in named]
        self.fields = kept + [(k, value) for k, value in named.items() if value is not ...]

    def field(self, key: str) -> Any:
        return dict(self.fields)[key]

    def tensor(self, name: str) -> Part:
        return dict(self.tensors)[name]

    def drop(self, name: str) -> None:
        self.tensors = [(key, part) for key, part in self.tensors if key != name]

    def write(self, path: Path) -> Path:
        path.write_bytes(self.content())
        return path

    def content(self) -> bytes:
        header = b"GGUF" + self.number("I", self.version)
        header += self.number("Q", len(self.tensors)) + self.number("Q", len(self.fields))
        for key, value in self.fields:
            header += self.text(key) + self.value(value)
        data = b""
        for name, part in self.tensors:
            header += self.text(name) + self.number("I", len(part.shape))
            header += b"".join(self.number("Q", size) for size in part.shape)
            header += self.number("I", part.kind) + self.number("Q", len(data))
            data += padded(part.content)
        return padded(header) + data

    def number(self, letter: str, value: float) -> bytes:
        return struct.pack(self.order + letter, value)

    def text(self, value: str) -> bytes:
        content = value.encode()
        return self.number("Q", len(content)) + content

    def value(self, value: Any) -> bytes:
        """A value with its type, in the type of GGUF that Python's stands for."""
        if isinstance(value, bool):
            return self.number("I", 7) + self.number("B", value)
        if isinstance(value, int):
            kind, letter = (4, "I") if 0 <= value < 2**32 else (11, "q")
            return self.number("I", kind) + self.number(letter, value)
        if isinstance(value, float):
            return self.number("I", 6) + self.number("f", value)
        if isinstance(value, str):
            return self.number("I", 8) + self.text(value)
        kind = 8 if value and isinstance(value[0], str) else 5
        items = (self.text(each) if kind == 8 else self.number("i", each) for each in value)
        start = self.number("I", 9) + self.number("I", kind) + self.number("Q", len(value))
        return start + b"".join(items)


def padded(content: bytes) -> bytes:
    return content + b"\0" * (-len(content) % ALIGNMENT)


def parts_of(path: Path) -> Parts:
    """The parts of a good file."""
    reader = GGUFReader(path)
    fields = [
        (name, field.contents())
        for name, field in reader.fields.items()
        if not name.startswith("GGUF.")
    ]
    tensors = [
        (each.name, Part(int(each.tensor_type), each.shape.tolist(), each.data.tobytes()))
        for each in reader.tensors
    ]
    return Parts(fields, tensors)
