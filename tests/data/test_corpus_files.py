"""The files of a corpus: what is read, what is said not to be, and memory that is bounded."""

import gzip
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from support.command import run_main
from support.stories import stories, write_jsonl

from smolctl.studies.tokens import prepared
from smollm2.data import documents, prepare
from smollm2.data.corpora import not_read
from smollm2.data.lines import LONGEST_LINE
from smollm2.errors import UserError

MIB = 2**20
PEAK = """
import re, sys
from pathlib import Path
from smollm2.data import documents
from smollm2.errors import UserError
try:
    for text in documents(sys.argv[1]):
        pass
except UserError as error:
    print(error)
print(int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024)
"""


def peak(path: Path) -> tuple[str, int]:
    """What reading a corpus in a process of its own says, and its peak in MiB."""
    if not Path("/proc/self/status").exists():
        pytest.skip("the peak of a process without its parent's is known on Linux only")
    command = [sys.executable, "-c", PEAK, str(path)]
    *said, size = subprocess.run(
        command, check=True, capture_output=True, text=True
    ).stdout.splitlines()
    return " ".join(said), int(size)


def test_endings_are_read_in_any_case(tmp_path):
    line = b'{"text": "one"}\n'
    (tmp_path / "a.JSONL").write_bytes(line)
    (tmp_path / "b.jsonl.GZ").write_bytes(gzip.compress(line))
    (tmp_path / "c.TXT").write_bytes(b"one")
    assert list(documents(str(tmp_path))) == ["one"] * 3
    assert list(documents(str(tmp_path / "b.jsonl.GZ"))) == ["one"]
    assert not_read(str(tmp_path)) is None


def test_what_is_not_read_is_named(tmp_path):
    corpus = tmp_path / "corpus"
    (tmp_path / "elsewhere").mkdir()
    corpus.mkdir()
    (corpus / "a.jsonl").write_text('{"text": "one"}\n')
    (corpus / "more").symlink_to("../elsewhere")
    os.mkfifo(corpus / "pipe.jsonl")
    (corpus / "zero.txt").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(corpus / "socket.md"))
    for name in ("README.md", "LICENSE", "table.csv", ".old.txt", ".DS_Store"):
        (corpus / name).write_text("two")
    assert list(documents(str(corpus))) == ["one"]
    assert not_read(str(corpus)) == (
        "Not read in 'corpus': linked folders (more), hidden files (.old.txt), files with other "
        "endings (LICENSE, table.csv), special files (pipe.jsonl, socket.md, zero.txt), files "
        "about the data (README.md)."
    )


def test_what_is_not_read_is_said_in_a_bounded_sentence(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    for number in range(500):
        (tmp_path / f"\x1b{'x' * 200}{number:03d}.csv").write_text("")
    said = not_read(str(tmp_path))
    assert len(said) < 400
    assert said.isprintable()
    assert "and 497 more" in said


def test_a_readme_among_documents_of_its_format_is_a_document(tmp_path):
    for name in ("README.md", "guide.md"):
        (tmp_path / name).write_text(name)
    assert list(documents(str(tmp_path))) == ["README.md", "guide.md"]
    assert not_read(str(tmp_path)) is None


@pytest.mark.parametrize("target", ["gone.txt", "a.txt"])
def test_a_link_that_leads_nowhere_is_refused_by_name(tmp_path, target):
    (tmp_path / "b.txt").write_text("text")
    (tmp_path / "a.txt").symlink_to(target)
    for refused in (documents, prepare_with_training):
        with pytest.raises(UserError, match=r"'a\.txt' is a link that leads nowhere"):
            refused(str(tmp_path))


def prepare_with_training(source: str) -> None:
    prepare(source, "train:300")


@pytest.mark.parametrize("name", ["pipe.jsonl", "zero.jsonl"])
def test_a_special_file_is_refused_and_not_opened(tmp_path, name):
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "zero.jsonl").symlink_to("/dev/zero")
    with pytest.raises(UserError, match=f"{name!r} is neither a file nor a folder"):
        list(documents(str(tmp_path / name)))


def test_the_command_warns_of_what_is_not_read_each_time(capsys, workdir, fresh_cache):
    (workdir / "corpus").mkdir()
    (workdir / "linked").mkdir()
    write_jsonl(workdir / "corpus/a.jsonl", stories(60))
    (workdir / "corpus/more").symlink_to("../linked")
    said = "Warning: Not read in 'corpus': linked folders (more)."
    options = ("prepare", "--data", "corpus", "--tokenizer", "train:300")
    code, _, stderr = run_main(capsys, *options, "--out", "tokens")
    assert (code, said in stderr) == (0, True)
    for source in ("corpus", "corpus", "tokens"):
        prepared(source, None, "train:300")
        assert said.removeprefix("Warning: ") in capsys.readouterr().err


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz"])
def test_a_line_of_any_length_takes_bounded_memory(tmp_path, ending):
    path = tmp_path / f"a{ending}"
    with gzip.open(path, "wb", 1) if ending.endswith("gz") else path.open("wb") as file:
        file.write(b'{"text": "one"}\n{"text": "')
        for _ in range(600):
            file.write(b"x" * MIB)
    said, size = peak(path)
    assert f"'a{ending}', line 2 is longer than 16 MiB" in said
    assert size < 500


def test_a_line_of_the_greatest_length_is_read(tmp_path):
    text = "x" * (LONGEST_LINE - 20)
    assert list(documents(write_jsonl(tmp_path / "a.jsonl", [text]))) == [text]


@pytest.mark.parametrize("value", ["{}", "1.5"])
def test_a_line_of_many_small_values_takes_bounded_memory(tmp_path, value):
    many = ",".join([value] * ((LONGEST_LINE - 40) // (len(value) + 1)))
    (tmp_path / "a.jsonl").write_text('{"text": "one", "x": [' + many + "]}\n")
    said, size = peak(tmp_path / "a.jsonl")
    assert said == ""
    assert size < 1000


def test_a_message_about_many_or_long_fields_is_short(tmp_path):
    for fields in ([f"field{n}" for n in range(100_000)], ["k" * 2_000_000], ["\x1b[31m"]):
        path = tmp_path / "a.jsonl"
        path.write_text(
            "{" + ",".join(f'"{name}": 1' for name in fields).replace("\x1b", "\\u001b") + "}"
        )
        with pytest.raises(UserError) as error:
            list(documents(str(path)))
        assert len(str(error.value)) < 800
        assert str(error.value).isprintable()


def test_a_first_line_of_a_byte_order_mark_alone_is_blank(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf\r\n{"text": "one"}\n')
    assert list(documents(str(tmp_path))) == ["one"]


def test_names_that_are_not_utf8_are_written_as_text(tmp_path, fresh_cache):
    name = os.fsdecode(b"caf\xe9.jsonl")
    try:
        source = write_jsonl(tmp_path / name, stories(40))
    except OSError:
        pytest.skip("this file system has only names that are UTF-8")
    assert prepare(source, "train:300").source == "caf\\xe9.jsonl"
    out = tmp_path / os.fsdecode(b"t\xe9")
    assert prepare(source, "train:300", out=out).path == out
    assert prepare(str(out), None).source == "caf\\xe9.jsonl"
