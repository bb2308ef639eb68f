"""JSON and TOML from outside: a value of bounded size, or one sentence that names the file."""

import json
import os
import threading
import tracemalloc

import pytest

from smollm2.errors import UserError
from smollm2.parse import (
    MAX_DEPTH,
    MAX_JSON,
    MAX_TOML,
    MissingFile,
    read_file,
    read_json,
    read_toml,
)

BOM = b"\xef\xbb\xbf"


def toml(path):
    return read_toml(path, "study", lambda table: table)


BAD_JSON = {
    "nothing": (b"", "Expecting value: line 1 column 1"),
    "half": (b'{"a": ', "Expecting value"),
    "a list": (b"[1]", "it is not a table of fields"),
    "another encoding": ('{"a": "é"}'.encode("latin-1"), "it is not UTF-8 text"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "it is not UTF-8 text"),
    "a NUL": (b'{"a": "\0"}', "Invalid control character"),
    "only NULs": (bytes(100), "Expecting value"),
    "deep lists": (b'{"a": ' + b"[" * 6000 + b"]" * 6000 + b"}", "nested deeper than 64"),
    "deep and unclosed": (b'{"a":' * 6000, "nested deeper than 64"),
    "just too deep": (b"[" * 66 + b"]" * 66, "nested deeper than 64"),
    "many digits": (b'{"a": ' + b"9" * 5000 + b"}", "a number of more than 40 digits"),
    "an overflow": (b'{"a": 1e999}', "a number that is not finite"),
    "no number": (b'{"a": [NaN]}', "a number that is not finite"),
    "infinity": (b'{"a": -Infinity}', "a number that is not finite"),
    "a field twice": (b'{"b": {"a": 1, "a": 2}}', "it has the field 'a' twice"),
    "half a surrogate pair": (b'{"a": "\\ud800"}', "half of a surrogate pair"),
}
BAD_TOML = {
    "half": (b"a = [", "Invalid value"),
    "another encoding": ('a = "é"'.encode("latin-1"), "it is not UTF-8 text"),
    "a NUL": (b'a = "\0"', "Illegal character"),
    "a field twice": (b"a = 1\na = 2", "Cannot overwrite a value"),
    "deep lists": (b"a = " + b"[" * 5000 + b"]" * 5000, "nested deeper than 64"),
    "a deep key": (b"a." * 100_000 + b"a = 1", "nested deeper than 64"),
    "a deep table": (b"[" + b"a . 'b' . " * 10_000 + b"a]", "nested deeper than 64"),
    "tables in turn": (
        b"".join(b"[" + b".".join([b"a"] * n) + b"]\n" for n in range(1, 66)),
        "nested deeper than 64",
    ),
    "many digits": (b"a = " + b"9" * 5000, "a number of more than 40 digits"),
    "many hexadecimal digits": (b"a = 0x" + b"f" * 5000, "a number of more than 40 digits"),
}


def is_one_bounded_sentence(message: str) -> bool:
    return "\n" not in message and len(message) < 600 and message.endswith(".")


@pytest.mark.parametrize("case", BAD_JSON)
def test_bad_json_is_one_sentence(tmp_path, case):
    content, reason = BAD_JSON[case]
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_json(path)
    assert f"{path} is not a readable JSON file: " in str(caught.value)
    assert reason in str(caught.value)
    assert is_one_bounded_sentence(str(caught.value))


@pytest.mark.timeout(10)
@pytest.mark.parametrize("case", BAD_TOML)
def test_bad_toml_is_one_sentence(tmp_path, case):
    content, reason = BAD_TOML[case]
    path = tmp_path / "bad.toml"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        toml(path)
    assert f"{path} is not a readable TOML file: " in str(caught.value)
    assert reason in str(caught.value)
    assert is_one_bounded_sentence(str(caught.value))


def test_what_is_legal_is_read(tmp_path):
    deepest = json.loads("[" * (MAX_DEPTH - 1) + "]" * (MAX_DEPTH - 1))
    values = {"a": deepest, "b": 10**39, "c": -1e308, "d": "é 😀", "e": {"a": None, "b": [True]}}
    path = tmp_path / "good.json"
    for mark in (b"", BOM):
        path.write_bytes(mark + json.dumps(values).encode())
        assert read_json(path) == values
    path.write_text('{"a": [NaN, Infinity, 1e999]}')
    nan, *others = read_json(path, nonfinite=True)["a"]
    assert nan != nan
    assert others == [float("inf")] * 2
    path = tmp_path / "good.toml"
    for mark in (b"", BOM):
        path.write_bytes(mark + b'a.b = 1\n[c."d.e"]\nf = "' + b"x. " * 100 + b'"\n')
        assert toml(path) == {"a": {"b": 1}, "c": {"d.e": {"f": "x. " * 100}}}


@pytest.mark.timeout(10)
@pytest.mark.parametrize("read", [read_json, toml])
def test_what_is_no_file_is_refused_and_never_waited_for(tmp_path, read):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "dangling").symlink_to("nowhere")
    threads = threading.active_count()
    for name, reason in {
        ".": "it is a folder",
        "pipe": "it is not a regular file",
        "zero": "it is not a regular file",
        "dangling": "it is a link to a file that does not exist",
        "loop": "Too many levels of symbolic links",
        "x" * 300: "File name too long",
        "a\0b": "its name is not a valid file name",
    }.items():
        with pytest.raises(UserError, match=reason) as caught:
            read(tmp_path / name)
        assert is_one_bounded_sentence(str(caught.value))
    with pytest.raises(MissingFile, match=r"There is no .*file '.*none'"):
        read(tmp_path / "none")
    assert threading.active_count() == threads


@pytest.mark.parametrize(("read", "limit"), [(read_json, MAX_JSON), (toml, MAX_TOML)])
def test_a_file_too_large_is_refused_without_reading_all_of_it(tmp_path, read, limit):
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(10**12)  # sparse
    with pytest.raises(UserError, match=f"it has more than {limit:,} bytes"):
        read(path)


def test_a_short_file_takes_little_memory_whatever_is_allowed(tmp_path):
    path = tmp_path / "short"
    path.write_bytes(b"text")
    tracemalloc.start()
    try:
        assert read_file(path, 2**30) == b"text"
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_a_long_reason_is_cut(tmp_path):
    path = tmp_path / "bad.toml"
    path.write_text("[" + "k" * 50_000 + "]\n" + "[" + "k" * 50_000 + "]\n")
    with pytest.raises(UserError) as caught:
        toml(path)
    assert len(str(caught.value)) < len(str(path)) + 300
