"""Strategies of hypothesis that turn a good file into a bad one."""

import copy
import csv
import gzip
import io
import json
import math
import struct
import tomllib
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

Strategy = st.SearchStrategy[bytes]

# Written in place of these texts, since no value in memory can be so deep or long.
DEEP, DIGITS = "<deep>", "<digits>"
LITERALS = {f'"{DEEP}"': "[" * 5000 + "]" * 5000, f'"{DIGITS}"': "9" * 5000}

# Numbers are tiny, which is cheap if it is legal, or absurd, which must be refused at once.
NUMBERS = [0, 1, -1, 3, 7, -(10**18), 2**63, 2**64, 10**30, 0.5, -0.0, 1e-320, 1e308]
TEXTS = [
    *(
        "",
        " ",
        "x",
        "nan",
        "-1",
        "1e999",
        "a/b",
        "..",
        "../x",
        "é\u202e",
        "\x1b[31mred\x1b[0m",
        "\0",
    ),
    *(
        "<img src=x onerror=alert(1)>",
        "![x](corpus.jsonl)",
        "`a` | b\n\n# c",
        "{{x}}",
        "%s",
        "\ud800",
    ),
    *("x" * 5000, "--help", "base@3", DEEP, DIGITS),
]
odd_texts = st.sampled_from(TEXTS) | st.text(max_size=8)
scalars = st.none() | st.booleans() | st.sampled_from([*NUMBERS, math.nan, math.inf]) | odd_texts
odd_values = (
    scalars | st.lists(scalars, max_size=3) | st.dictionaries(odd_texts, scalars, max_size=2)
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value inside a value."""
    if isinstance(value, dict):
        items: Any = value.items()
    else:
        items = enumerate(value) if isinstance(value, list) else ()
    inner = [place for key, each in items for place in places(each, (*path, key))]
    return ([path] if path else []) + inner


@st.composite
def changed(draw: st.DrawFn, document: Any) -> Any:
    """A document with one or two of its values replaced, deleted, renamed or added."""
    document = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 2))):
        found = places(document)
        if not found:
            break
        *path, key = draw(st.sampled_from(found))
        parent = document
        for step in path:
            parent = parent[step]
        action = draw(st.sampled_from(["replace", "replace", "replace", "delete", "add"]))
        if action == "replace":
            parent[key] = draw(odd_values)
        elif action == "delete":
            del parent[key]
        elif isinstance(parent, dict):
            parent[draw(odd_texts)] = draw(odd_values)
        else:
            parent.append(draw(odd_values))
    return document


@st.composite
def damaged_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """Content cut off, with bytes altered or inserted, with a BOM, or something else entirely."""
    at = draw(st.integers(0, max(0, len(content) - 1)))
    few = draw(st.binary(min_size=1, max_size=16))
    return draw(
        st.sampled_from(
            [
                content[:at],
                content[:at] + few + content[at:],
                content[:at] + few + content[at + len(few) :],
                content[:at] + b"\0" * 64 + content[at + 64 :],
                b"\xef\xbb\xbf" + content,
                content + content,
                content.decode("latin-1").encode("utf-16"),
                few,
                b"",
            ]
        )
    )


def written(text: str) -> bytes:
    """A text of JSON or TOML with the deep and long literals in place."""
    for name, literal in LITERALS.items():
        text = text.replace(name, literal)
    return text.encode("utf-8", "surrogatepass")


def damaged_json(content: bytes) -> Strategy:
    """JSON with other values, or no longer JSON."""
    values = changed(json.loads(content)) | odd_values
    return values.map(lambda value: written(json.dumps(value))) | damaged_bytes(content)


def toml_value(value: Any) -> str:
    """A value as TOML in one line; None, which it has not, as an empty text."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{toml_text(k)} = {toml_value(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return f"[{', '.join(map(toml_value, value))}]"
    return toml_text(value or "") if value is None or isinstance(value, str) else str(value).lower()


def toml_text(text: str) -> str:
    return json.dumps(text).replace("\x7f", "\\u007f")


def damaged_toml(content: bytes) -> Strategy:
    """TOML with other values, or no longer TOML."""

    def as_toml(document: dict[str, Any]) -> bytes:
        lines = (f"{toml_text(k)} = {toml_value(v)}\n" for k, v in document.items())
        return written("".join(lines))

    return changed(tomllib.loads(content.decode())).map(as_toml) | damaged_bytes(content)


@st.composite
def changed_rows(draw: st.DrawFn, content: bytes) -> bytes:
    """A CSV with odd cells, or rows and columns too many or too few."""
    rows = list(csv.reader(io.StringIO(content.decode(), newline="")))
    for _ in range(draw(st.integers(1, 3))):
        row = draw(st.sampled_from(rows))
        at = draw(st.integers(0, max(0, len(row) - 1)))
        action = draw(st.sampled_from(["cell", "cell", "cell", "less", "more", "twice", "none"]))
        if action == "cell" and row:
            row[at] = str(draw(scalars))
        elif action == "less" and row:
            del row[at]
        elif action == "more":
            row.insert(at, str(draw(scalars)))
        elif action == "twice":
            rows.append(list(row))
        elif len(rows) > 1:
            rows.remove(row)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode("utf-8", "surrogatepass")


def damaged_csv(content: bytes) -> Strategy:
    """A CSV with other cells, or no longer a CSV."""
    return changed_rows(content) | damaged_bytes(content)


def damaged_safetensors(content: bytes) -> Strategy:
    """Weights with another header, an absurd length of it, or altered bytes."""
    (length,) = struct.unpack("<Q", content[:8])
    header, rest = json.loads(content[8 : 8 + length]), content[8 + length :]

    def with_header(value: Any) -> bytes:
        text = written(json.dumps(value))
        return struct.pack("<Q", len(text)) + text + rest

    lengths = st.sampled_from([0, 1, length - 1, length + 1, 10**6, 2**40, 2**63, 2**64 - 1])
    return (
        changed(header).map(with_header)
        | lengths.map(lambda n: struct.pack("<Q", n) + content[8:])
        | damaged_bytes(content)
    )


def damaged_lines(content: bytes) -> Strategy:
    """JSONL of which some lines are odd or broken."""
    good = content.decode().splitlines()
    values = st.builds(lambda v: json.dumps({"text": v}), odd_values) | odd_values.map(json.dumps)
    lines = values | odd_texts | st.sampled_from(good) | st.sampled_from(['{"text": ', "{}", "[]"])
    inserted = st.builds(
        lambda at, new: written("\n".join([*good[:at], *new, *good[at:]]) + "\n"),
        st.integers(0, len(good)),
        st.lists(lines, min_size=1, max_size=3),
    )
    alone = st.lists(lines, max_size=4).map(lambda new: written("\n".join(new)))
    return inserted | alone | damaged_bytes(content)


def damaged_gzip(content: bytes) -> Strategy:
    """Compressed lines, odd in themselves or in their compression."""
    return damaged_lines(content).map(gzip.compress) | damaged_bytes(gzip.compress(content))


def damaged_text(content: bytes) -> Strategy:
    """Plain text, with odd characters or not text at all."""
    odd = odd_texts.map(lambda text: text.encode("utf-8", "surrogatepass"))
    return damaged_bytes(content) | odd | odd.map(lambda text: content + text * 50)


@st.composite
def damaged_parquet(draw: st.DrawFn, content: bytes) -> bytes:
    """A table of other columns and types, or damaged bytes of one.

    Args:
        content: JSONL with the texts that a good table holds.
    """
    import pyarrow as pa
    from pyarrow import parquet

    texts = [json.loads(line)["text"] for line in content.decode().splitlines()]
    columns: list[Any] = [
        pa.array(texts),
        pa.array([*texts[1:], None]),
        pa.array(texts).dictionary_encode(),
        pa.array(texts, pa.large_string()),
        pa.array([text.encode() for text in texts]),
        pa.array([b"caf\xe9"] * len(texts)),
        pa.array(range(len(texts))),
        pa.array([[text] for text in texts]),
        pa.nulls(len(texts)),
    ]
    names = draw(st.lists(st.sampled_from(["text", "text", "content", ""]), max_size=3))
    chosen = [draw(st.sampled_from(columns)) for _ in names]
    buffer = io.BytesIO()
    parquet.write_table(pa.Table.from_arrays(chosen, names=names), buffer)
    made = buffer.getvalue()
    return draw(damaged_bytes(made)) if draw(st.integers(0, 2)) == 0 else made


Damage = Callable[[bytes], Strategy]
