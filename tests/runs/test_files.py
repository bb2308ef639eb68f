"""Files are replaced whole, whoever else writes them."""

import errno
import os
import stat
import subprocess
import sys

import pytest

from smollm2.errors import UserError
from smollm2.files import FULL, append, make_folder, replace_file, replacing, write_tensors
from smollm2.runs.tables import TABLES, TableFolder

try:
    import resource
except ImportError:  # Windows
    resource = None

REPLACING = """
import sys
from pathlib import Path
from smollm2.files import replace_file
for _ in range(300):
    replace_file(Path(sys.argv[1]), sys.argv[2] * 10_000)
"""


def test_processes_that_replace_one_file_leave_the_whole_of_one(tmp_path):
    path = tmp_path / "study.toml"
    commands = [[sys.executable, "-c", REPLACING, str(path), letter] for letter in "ab"]
    both = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in commands]
    said = [process.communicate(timeout=120)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert path.read_text() in ("a" * 10_000, "b" * 10_000)
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_written_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    replace_file(path, "old")
    with pytest.raises(UnicodeEncodeError):
        replace_file(path, "\ud800")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("cell", ["1e999", "9" * 40])
def test_a_table_with_a_number_too_large_is_named(tmp_path, cell):
    row = dict.fromkeys(TABLES["eval"], "1") | {"context": cell}
    TableFolder(tmp_path).replace("eval", [row])
    with pytest.raises(UserError, match=r"eval.csv has a context that is not a number"):
        TableFolder(tmp_path).table("eval")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda text: text.replace("1,2", "\n1,2"), "a line without a document"),
        (lambda text: text + "3,4,5\n", "a line of another length"),
        (lambda text: text.replace("1,2", "1.5,2"), "'document' that is not a count"),
        (lambda text: text.replace("1,2", "-1,2"), "'document' that is not a count"),
        (lambda text: text.replace("1,2,3", "1,2,x"), "a nats that is not a number"),
        (lambda text: text.replace("nats,hits", "nats,hits,hits"), "two columns 'hits'"),
        (lambda text: text.replace("nats,", "Nats,", 1), "lacks the column 'nats'"),
        (lambda text: text[:-1], "ends in the middle of a line"),
        (lambda text: f'"a\nb",{text}', "lacks the column|another length"),
    ],
)
def test_a_damaged_table_is_refused_in_a_sentence(tmp_path, change, sentence):
    row = dict(zip(TABLES["documents"], range(1, 7), strict=True))
    folder = TableFolder(tmp_path)
    folder.replace("documents", [row, row | {"document": 2}])
    assert folder.columns("documents")["nats"].tolist() == [3.0, 3.0]
    path = tmp_path / "documents.csv"
    path.write_text(change(path.read_text()))
    with pytest.raises(UserError, match=rf"documents.csv .*({sentence})"):
        folder.columns("documents")


def test_a_table_is_read_with_more_columns_and_other_ends_of_lines(tmp_path):
    row = dict(zip(TABLES["documents"], range(1, 7), strict=True))
    folder = TableFolder(tmp_path)
    folder.replace("documents", [row])
    path = tmp_path / "documents.csv"
    first, second = path.read_text().splitlines()
    path.write_bytes(f"later,{first}\r\nx,{second}\r\n".encode())
    assert {name: cells.tolist() for name, cells in folder.columns("documents").items()} == {
        name: [cell] for name, cell in row.items()
    }


@pytest.mark.parametrize("table", ["quantize", "eval"])
def test_a_cell_without_an_end_is_reported(tmp_path, table):
    folder = TableFolder(tmp_path)
    folder.replace(table, [dict.fromkeys(TABLES[table], "1")])
    with (tmp_path / f"{table}.csv").open("a") as file:
        file.write('"' + "x" * 200_000 + "\n")
    for read in (folder.table, folder.rows):
        with pytest.raises(UserError, match=f"{table}.csv (cannot be read|has a line of another)"):
            read(table)


def fail_at(monkeypatch, place, number):
    """Have the `number`-th call of a function of `os` find the disk full."""
    calls, real = [], getattr(os, place)

    def failing(*arguments, **options):
        calls.append(arguments)
        if len(calls) == number:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*arguments, **options)

    monkeypatch.setattr(os, place, failing)


@pytest.mark.parametrize("place", ["fsync", "replace", "open"])
def test_a_full_disk_leaves_the_old_file_and_names_it(tmp_path, monkeypatch, place):
    path = tmp_path / "file"
    replace_file(path, "old")
    with monkeypatch.context() as patch:
        fail_at(patch, place, 1)
        with pytest.raises(OSError, match="file") as caught:
            replace_file(path, "new")
    assert caught.value.filename == str(path)
    assert path.read_text() == ("new" if place == "open" else "old")  # the folder's own flush
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(resource is None, reason="no limits of file sizes here")
@pytest.mark.parametrize("room", [0, 1, 5, 999])
def test_too_little_room_leaves_the_old_file_and_the_old_rows(tmp_path, room):
    import torch

    path, rows, weights = tmp_path / "file", tmp_path / "rows", tmp_path / "weights"
    for each in (path, rows):
        replace_file(each, "old\n")
    write_tensors(weights, {"a": torch.zeros(3)})
    before = weights.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        for write, to in ((replace_file, path), (append, rows)):
            with pytest.raises(OSError, match=to.name) as caught:
                write(to, "new\n" * 1000)
            assert caught.value.errno in FULL
        with pytest.raises(OSError, match="weights") as caught:
            write_tensors(weights, {"a": torch.zeros(3000)})
        assert caught.value.errno in FULL
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_text() == rows.read_text() == "old\n"
    assert weights.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 3


def test_a_folder_is_whole_or_absent(tmp_path):
    def interrupted():
        with replacing(tmp_path / "made") as made:
            made.mkdir()
            (made / "file").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_names_and_contents_are_flushed_before_and_after_a_rename(tmp_path, monkeypatch):
    done = []
    real = os.fsync, os.replace
    monkeypatch.setattr(
        os, "fsync", lambda fd: done.append(os.readlink(f"/proc/self/fd/{fd}")) or real[0](fd)
    )
    monkeypatch.setattr(os, "replace", lambda *to: done.append("renamed") or real[1](*to))
    with replacing(tmp_path / "made") as made:
        (made / "inner").mkdir(parents=True)
        (made / "inner/file").touch()
    assert done == [str(made), f"{made}/inner/file", f"{made}/inner", "renamed", str(tmp_path)]
    done.clear()
    make_folder(tmp_path / "a/b")
    assert sorted(done) == [str(tmp_path), f"{tmp_path}/a"]


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_permissions_are_those_of_plain_files(tmp_path, umask):
    import torch

    before = os.umask(umask)
    try:
        replace_file(tmp_path / "file", "text")
        write_tensors(tmp_path / "weights", {"a": torch.zeros(3)})
        with replacing(tmp_path / "folder") as made:
            made.mkdir()
        replace_file(tmp_path / "mine", "old")
        (tmp_path / "mine").chmod(0o640)
        replace_file(tmp_path / "mine", "new")
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    plain = 0o666 & ~umask
    assert modes == {"file": plain, "weights": plain, "folder": 0o777 & ~umask, "mine": 0o640}


def test_a_short_write_of_numpy_is_a_full_disk(tmp_path):
    with pytest.raises(OSError, match="No space left") as error, replacing(tmp_path / "file"):
        raise OSError("64 requested and 0 written")
    assert error.value.errno == errno.ENOSPC
    assert error.value.filename == str(tmp_path / "file")
