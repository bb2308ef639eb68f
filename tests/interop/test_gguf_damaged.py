"""Files that are not GGUF files, or no longer: a sentence, and nothing is left behind."""

import os
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.command import require_refused

from smollm2.errors import UserError
from smollm2.interop.gguf_import import open_gguf


def with_counts(content: bytes, tensors: int | None = None, fields: int | None = None) -> bytes:
    """The file with other counts in its header."""
    own = struct.unpack_from("<QQ", content, 8)
    counts = [own[0] if tensors is None else tensors, own[1] if fields is None else fields]
    return content[:8] + struct.pack("<QQ", *counts) + content[24:]


def with_first(letters: str, *numbers: int):
    """A file whose first field is a list: its type, and how many items it claims to have."""
    start = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"a"
    return lambda content: start + struct.pack(f"<I{letters}", 9, *numbers) + b"\0" * 4096


BYTES = {
    "nothing": (lambda content: b"", "it is empty; copy or fetch it again."),
    "three bytes": (lambda content: content[:3], "it is not a GGUF file, whatever its name"),
    "another format": (lambda content: b"PK" + content, "it is not a GGUF file, whatever its name"),
    "the first bytes": (lambda content: content[:10], "it is cut off"),
    "half of the fields": (lambda content: content[:3000], "it is cut off"),
    "all but the last bytes": (lambda content: content[:-100], "it is cut off"),
    "a huge number of tensors": (
        lambda content: with_counts(content, tensors=2**62),
        "it is damaged: it claims to have 4,611,686,018,427,387,904 tensors",
    ),
    "a huge number of fields": (
        lambda content: with_counts(content, fields=2**63),
        "it is damaged: it claims to have 9,223,372,036,854,775,808 fields",
    ),
    "more tensors than there are": (lambda content: with_counts(content, tensors=10**5), "it is "),
    "more fields than there are": (lambda content: with_counts(content, fields=10**4), "it is "),
    "a huge list": (
        with_first("IQ", 0, 2**60),
        "it claims to have 1,152,921,504,606,846,976 items",
    ),
    "a list beyond the end": (with_first("IQ", 10, 10**5), "it is cut off"),
    "a list of lists": (with_first("IQ", 9, 2), "it is damaged: a field in it is of type 9"),
    "a text beyond the end": (with_first("IQQ", 8, 1, 2**62), "it is cut off"),
    "a text that is none": (
        lambda content: content.replace(b"general.name", b"general.nam\xff"),
        "it is damaged: a text in its header is not UTF-8",
    ),
}


@pytest.mark.parametrize("case", BYTES)
def test_what_is_no_whole_file_is_refused(capsys, workdir, good_gguf, case):
    harm, sentence = BYTES[case]
    Path("m.gguf").write_bytes(harm(good_gguf.read_bytes()))
    require_refused(capsys, "./m.gguf", sentence)


def test_a_part_is_known_by_its_name(capsys, workdir, good_gguf):
    name = "m-00002-of-00003.gguf"
    Path(name).write_bytes(good_gguf.read_bytes())
    require_refused(capsys, f"./{name}", "it is one of 3 parts of a model")


def test_without_the_package_the_error_names_the_install_command(
    capsys, workdir, good_gguf, monkeypatch
):
    Path("m.gguf").write_bytes(good_gguf.read_bytes())
    monkeypatch.setattr("smollm2.interop.gguf_file.find_spec", lambda name: None)
    require_refused(capsys, "./m.gguf", "read with the package gguf: pip install gguf")


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() == 0, reason="all is readable")
def test_a_file_that_may_not_be_read_is_named(capsys, workdir, good_gguf):
    Path("m.gguf").write_bytes(good_gguf.read_bytes())
    Path("m.gguf").chmod(0)
    require_refused(capsys, "./m.gguf", "it cannot be read: Permission denied.")


def test_a_file_that_is_cut_off_while_it_is_read_is_an_error(tmp_path, good_gguf):
    path = tmp_path / "m.gguf"
    path.write_bytes(good_gguf.read_bytes())
    source = open_gguf(path, "./m.gguf")
    path.write_bytes(good_gguf.read_bytes()[:-5000])
    with pytest.raises(UserError, match="it is cut off"):
        source.read_state()
    path.unlink()
    with pytest.raises(UserError, match="it cannot be read: No such file"):
        source.read_state()


@settings(max_examples=200, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_whatever_is_damaged_is_a_sentence_or_a_model(tmp_path, good_gguf, data):
    content = good_gguf.read_bytes()
    at = data.draw(st.integers(0, 14_000) | st.integers(0, len(content)))
    new = data.draw(st.binary(min_size=1, max_size=9) | st.sampled_from([b"\0" * 64, b"\xff" * 8]))
    kept = data.draw(st.sampled_from([at, at + len(new), len(content)]))
    path = tmp_path / "m.gguf"
    path.write_bytes(content[:at] + new + content[kept:])
    try:
        source = open_gguf(path, "./m.gguf")
        source.read_tokenizer()
        source.read_state()
    except UserError as error:
        said = str(error)
        assert len(said) < 500
